"""The original: the checkpoint as transformers runs it, which every export is compared with.

All of it in float32, attention by the plain formula (eager).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from export.errors import SourceError

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Processor: Any = AutoProcessor


def load_checkpoint(folder: Path, dtype: torch.dtype) -> Any:
    """Load a checkpoint's model, each weight straight to `dtype`; raise `SourceError` if it is not whole."""
    try:
        model, loading = _Model.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SourceError(f"transformers cannot load the checkpoint: {error}") from error
    if absent := sorted({*loading["missing_keys"], *map(str, loading["mismatched_keys"])}):
        raise SourceError(f"the checkpoint lacks {len(absent)} weights of its configuration, first {absent[0]}")
    return model.eval()


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the dtype of a checkpoint's weights; float32, which holds them all, where they have several."""
    dtypes: set[torch.dtype] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            dtypes.update(tensors.get_tensor(name).dtype for name in tensors.keys())  # noqa: SIM118 (not a dict)
    floats = {dtype for dtype in dtypes if dtype.is_floating_point}
    return floats.pop() if len(floats) == 1 else torch.float32


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """What `generate` wrote, end token included."""

    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V) float32: what each token was chosen from, after the checkpoint's rules; none with beams
    score: float | None = None  # with beams: the best one's, as `generate` ranks them


class Reference:
    """A transformers model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a checkpoint, all of it in float32; raise `SourceError` if it is not whole."""
        try:
            processor = _Processor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"transformers cannot load the checkpoint's processor: {error}") from error
        return cls(load_checkpoint(folder, torch.float32), processor)

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
    def generate(
        self, text: str, image: Image.Image, image_features: Tensor, max_new_tokens: int, num_beams: int = 1
    ) -> ReferenceAnswer:
        """Answer a prompt, greedily or by beams; `image_features` (N, C) are those of `image`, computed once."""
        inputs = self._inputs(text, image)
        vision_output = BaseModelOutputWithPooling(pooler_output=image_features[None])
        output = self.model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs},
            mm_encoder_outputs={"image": vision_output},
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        num_before = 1 if self.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        token_ids = tuple(output.sequences[0, num_before:].tolist())
        if num_beams > 1:
            return ReferenceAnswer(token_ids, torch.empty(0), float(output.sequences_scores[0]))
        return ReferenceAnswer(token_ids, torch.cat(output.scores).float())

    def prompt_text(self, text: str) -> str:
        """Return a prompt as the processor wants it: Florence-2's adds the image token itself."""
        return text if self.model.config.model_type == "florence2" else f"<image>{text}"

    def _inputs(self, text: str, image: Image.Image) -> Any:
        return self.processor(images=image, text=self.prompt_text(text), return_tensors="pt")
