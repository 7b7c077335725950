"""The original: the checkpoint as transformers runs it, which every export is compared with.

The vision part is float32 whatever the precision, as in the export. Attention is computed by the plain
formula (eager).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from export.errors import SourceError
from runners.artifacts import Precision

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """What `generate` wrote, end token included."""

    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V) float32: what each token was chosen from, after the checkpoint's generation rules


class Reference:
    """A transformers model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path, precision: Precision) -> Self:
        """Load a checkpoint, the decoder in the dtype of `precision`; raise `SourceError` if it is not whole."""
        try:
            processor = _Processor.from_pretrained(folder, local_files_only=True)
            model, loading = _Model.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise SourceError(f"transformers cannot load the checkpoint: {error}") from error
        if absent := sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])}):
            raise SourceError(f"the checkpoint lacks {len(absent)} weights of its configuration, first {absent[0]}")
        for part in (model.model.language_model, model.lm_head):
            part.to(getattr(torch, precision))
        return cls(model.eval(), processor)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return image features (B, N, C) of images that have the model's size already."""
        inputs = self.processor.image_processor(list(images), do_resize=False, return_tensors="pt")
        features = [self.model.get_image_features(one[None]).pooler_output for one in inputs["pixel_values"]]
        return torch.cat(features)

    def prompt_ids(self, text: str, image: Image.Image) -> tuple[int, ...]:
        """Return the token ids of a prompt as the processor makes them, image tokens left out."""
        image_token_id = self.model.config.image_token_id
        ids: list[int] = self._inputs(text, image)["input_ids"][0].tolist()
        return tuple(token_id for token_id in ids if token_id != image_token_id)

    @torch.inference_mode()
    def generate(self, text: str, image: Image.Image, image_features: Tensor, max_new_tokens: int) -> ReferenceAnswer:
        """Answer a prompt greedily; `image_features` (N, C) are those of `image`, computed once for all prompts."""
        inputs = self._inputs(text, image)
        vision_output = BaseModelOutputWithPooling(pooler_output=image_features[None])
        output = self.model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs},
            mm_encoder_outputs={"image": vision_output},
            max_new_tokens=max_new_tokens,
            num_beams=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat(output.scores).float()
        return ReferenceAnswer(tuple(output.sequences[0, -len(logits) :].tolist()), logits)

    def prompt_text(self, text: str) -> str:
        """Return a prompt as the processor wants it: Florence-2's adds the image token itself."""
        return text if self.model.config.model_type == "florence2" else f"<image>{text}"

    def _inputs(self, text: str, image: Image.Image) -> Any:
        return self.processor(images=image, text=self.prompt_text(text), return_tensors="pt")
