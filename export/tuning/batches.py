r"""Examples as batches of tensors: images by the code that serves them, prompts by the runner's
tokenizer.

Florence-2   inputs `image… <s> prompt </s>`                   labels `<s> answer </s>`
PaliGemma    inputs `image… <bos> prompt \n answer <eos>`      labels of the answer and `<eos>` only

The vision tower is frozen, so that the features of an image are computed once, without its dropout.
Shapes: B batch, N image tokens, S prompt or sequence (padded on the right), T answer (padded), C
hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from export.artifacts.vision_module import ImageInput, read_image_input
from export.errors import ExportError
from export.tuning.examples import Example
from imaging.containers import ImageError
from imaging.files import read_image, resize
from runners.tokens.text import PromptTokenizer
from tasks.prompts import Prompt
from wire.artifacts.manifest import TOKENIZER_FILE

NO_LABEL = -100  # transformers' losses ignore it: marks tokens outside the answer
_LINE_BREAK = ("\n", False)
# Features of further images are computed in every epoch.
_MAX_CACHED_BYTES = 4e9


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """The token ids of an example, without those of the image."""

    image: Path
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]


class Batches:
    """Tokenizes the examples of one checkpoint and stacks them as inputs of its forward pass."""

    def __init__(self, model: Any, processor: Any, folder: Path) -> None:
        self._model = model
        self._embed = model.get_input_embeddings()
        self._is_encoder_decoder = bool(model.config.is_encoder_decoder)
        self._image_processor = processor.image_processor
        self._image_input: ImageInput = read_image_input(processor.image_processor)
        self._tokenizer = PromptTokenizer.load(folder / TOKENIZER_FILE)
        special = processor.tokenizer
        self._bos_id = special.bos_token_id
        self._eos_id = special.eos_token_id
        self._pad_id = special.pad_token_id
        self._features: dict[Path, Tensor] = {}
        self._num_cached_bytes = 0
        blank = self._pixel_values(Image.new("RGB", self._image_input.size_wh))
        self._num_image_tokens = self._encode(blank).shape[1]

    def tokenized(self, example: Example) -> TokenizedExample:
        """Return the ids of an example.

        Raise `ExportError` if it has more tokens than the model has positions.
        """
        prompt = (self._bos_id, *self._encoded(example.prompt))
        answer = (*self._encoded(example.answer), self._eos_id)
        if self._is_encoder_decoder:
            ids = TokenizedExample(example.image, (*prompt, self._eos_id), (self._bos_id, *answer))
            longest = max(self._num_image_tokens + len(ids.prompt_ids), len(ids.answer_ids))
        else:
            line_break = self._tokenizer.encode([_LINE_BREAK])
            ids = TokenizedExample(example.image, (*prompt, *line_break), answer)
            longest = self._num_image_tokens + len(ids.prompt_ids) + len(ids.answer_ids)
        if longest > (limit := self._model.config.text_config.max_position_embeddings):
            raise ExportError(
                f"{example.image}: image, prompt and answer need {longest} positions; the model has"
                f" {limit}"
            )
        return ids

    @torch.no_grad()
    def stack(self, examples: Sequence[TokenizedExample]) -> dict[str, Tensor]:
        features, input_rows, attention, labels, types = [], [], [], [], []
        for example in examples:
            features.append(self._image_features(example.image))
            row_ids, row_labels, row_types = self._row(example)
            input_rows.append(row_ids)
            attention.append(torch.ones(self._num_image_tokens + len(row_ids)))
            labels.append(row_labels)
            types.append(row_types)
        image_features = torch.stack(features)  # (B, N, C)
        input_ids = pad_sequence(input_rows, True, self._pad_id).to(image_features.device)
        batch = {
            "inputs_embeds": torch.cat(
                [image_features, self._embed(input_ids)], dim=1
            ),  # (B, N + S, C)
            "attention_mask": pad_sequence(attention, True).long(),  # (B, N + S)
            # (B, T), PaliGemma's (B, N + S)
            "labels": pad_sequence(labels, True, NO_LABEL),
        }
        if not self._is_encoder_decoder:  # 0: image and prompt, which see each other; 1: the answer
            batch["token_type_ids"] = pad_sequence(types, True, 1)
        return batch

    def _row(self, example: TokenizedExample) -> tuple[Tensor, Tensor, Tensor]:
        """Return input ids without the image's, labels and token types."""
        prompt = torch.tensor(example.prompt_ids)
        answer = torch.tensor(example.answer_ids)
        if self._is_encoder_decoder:
            return prompt, answer, torch.zeros(0)
        num_prefix = self._num_image_tokens + len(prompt)
        labels = torch.cat([torch.full((num_prefix,), NO_LABEL), answer])
        return torch.cat([prompt, answer]), labels, (torch.arange(len(labels)) >= num_prefix).long()

    def _encoded(self, segments: Prompt) -> list[int]:
        return self._tokenizer.encode([(segment.text, segment.is_control) for segment in segments])

    def _image_features(self, path: Path) -> Tensor:
        """Return the features (N, C) of an image, encoded alone: they do not depend on the batch,
        nor on a resume.
        """
        if path not in self._features:
            try:
                image = read_image(path)
            except (OSError, ImageError) as error:
                raise ExportError(f"the image {path} cannot be read: {error}") from error
            resized = resize(image, self._image_input.size_wh, self._image_input.resample)
            features = self._encode(self._pixel_values(resized))[0]
            if self._num_cached_bytes + features.nbytes > _MAX_CACHED_BYTES:
                return features
            self._features[path] = features
            self._num_cached_bytes += features.nbytes
        return self._features[path]

    def _encode(self, pixel_values: Tensor) -> Tensor:
        """Return image features (1, N, C)."""
        for part in (self._model.model.vision_tower, self._model.model.multi_modal_projector):
            part.eval()  # a trainer sets the whole model to training
        with torch.no_grad():
            features: Tensor = self._model.get_image_features(pixel_values).pooler_output
        return features

    def _pixel_values(self, image: Image.Image) -> Tensor:
        values: Tensor = self._image_processor([image], do_resize=False, return_tensors="pt")[
            "pixel_values"
        ]
        return values.to(self._model.device, self._model.dtype)
