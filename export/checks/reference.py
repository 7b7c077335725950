"""The reference that every export is compared with: the checkpoint run by transformers, in float32, eager attention."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from export.artifacts.decoder_weights import load_checkpoint
from export.checkpoints.errors import SourceError

_Processor: Any = AutoProcessor  # transformers' factories have no types


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """The output of `generate`, end token included."""

    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V) float32, after the checkpoint's generation rules; empty with beams
    score: float | None = None  # of the best beam, as `generate` ranks them; None without beams


class Reference:
    """A transformers model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a checkpoint in float32; raise `SourceError` if it is incomplete."""
        try:
            processor = _Processor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(f"transformers cannot load the checkpoint's processor: {error}") from error
        return cls(load_checkpoint(folder, torch.float32), processor)

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return image features (B, N, C) of images that already have the model's input size."""
        inputs = self.processor.image_processor(list(images), do_resize=False, return_tensors="pt")
        features = [self.model.get_image_features(one[None]).pooler_output for one in inputs["pixel_values"]]
        return torch.cat(features)

    def prompt_ids(self, text: str, image: Image.Image) -> tuple[int, ...]:
        """Return the processor's token ids of a prompt, without the image tokens."""
        image_token_id = self.model.config.image_token_id
        ids: list[int] = self._inputs(text, image)["input_ids"][0].tolist()
        return tuple(token_id for token_id in ids if token_id != image_token_id)

    @torch.inference_mode()
    def generate(
        self, text: str, image: Image.Image, image_features: Tensor, max_new_tokens: int, num_beams: int = 1
    ) -> ReferenceAnswer:
        """Answer a prompt, greedily or by beam search; `image_features` (N, C) are those of `image`."""
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
        """Return a prompt in the processor's format: Florence-2's processor adds the image token itself."""
        return text if self.model.config.model_type == "florence2" else f"<image>{text}"

    def _inputs(self, text: str, image: Image.Image) -> Any:
        return self.processor(images=image, text=self.prompt_text(text), return_tensors="pt")
