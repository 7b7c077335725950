"""The reference that every export is compared with: the checkpoint run by transformers, in float32,
eager attention.

A checkpoint or decoder that is too large to be held in float32 is run layer by layer. A layer's
weights are read at each use, into the memory of the layer before it; the first layers stay in
memory, as many as fit `MAX_RESIDENT_BYTES`. It is the same float32 arithmetic. Shapes: B batch, N
image tokens, C hidden, T decoded, V vocabulary.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from export.checkpoints.tensors import (
    CheckpointTensors,
    empty_model,
    load_checkpoint,
)
from export.errors import SourceError, one_line
from export.resources import MAX_RESIDENT_BYTES
from runners.decoder.protocol import Decoder
from runners.models.layers import Linear, PackedLinear, can_pack
from runners.models.load import load_decoder
from runners.models.weights import DecoderWeights
from wire.artifacts.manifest import Device, Family, Precision

_Processor: Any = AutoProcessor  # transformers' factories have no types
_NUM_TOP_LOGITS = 8  # tokens beyond these are not near ties


@dataclass(frozen=True, slots=True)
class GreedyAnswer:
    """A greedy answer with its end token, and the best candidates of each step."""

    token_ids: tuple[int, ...]
    # per step: token -> logit, after the checkpoint's generation rules
    top_logits: tuple[Mapping[int, float], ...]


class Reference:
    """A transformers model with its processor."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.processor = processor

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Load a checkpoint in float32; raise `SourceError` if it is incomplete."""
        return cls(load_checkpoint(folder, torch.float32), load_processor(folder))

    @classmethod
    def stream(cls, folder: Path, max_resident_bytes: int) -> Self:
        """Prepare a checkpoint run by layers; only `max_resident_bytes` of them stay loaded."""
        tensors = CheckpointTensors.open(folder)
        model = empty_model(folder)
        layers = dict[str, nn.Module]()  # all stacks'
        for stack_name, stack in model.named_modules():
            if isinstance(stack, nn.ModuleList):
                for index, layer in stack.named_children():
                    layers[f"{stack_name}.{index}"] = layer

        def drop(layer: nn.Module, _inputs: object, _output: object) -> None:
            layer.to("meta")

        def read(name: str, layer: nn.Module, _inputs: object) -> None:
            layer.to_empty(device="cpu")
            tensors.fill(layer, name)

        for name, layer in layers.items():
            max_resident_bytes -= sum(weight.nbytes for weight in layer.parameters())
            if max_resident_bytes < 0:
                layer.to("meta")
                layer.register_forward_pre_hook(partial(read, name))
                layer.register_forward_hook(drop)
        tensors.fill(model, "")
        return cls(model, load_processor(folder))

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Return image features (B, N, C) of images that already have the model's input size."""
        inputs = self.processor.image_processor(list(images), do_resize=False, return_tensors="pt")
        features = []
        for pixel_values in inputs["pixel_values"]:
            features.append(self.model.get_image_features(pixel_values[None]).pooler_output)
        return torch.cat(features)

    def prompt_ids(self, text: str, image: Image.Image) -> tuple[int, ...]:
        """Return the processor's token ids of a prompt, without the image tokens."""
        image_token_id = self.model.config.image_token_id
        ids: list[int] = self.inputs([text], [image])["input_ids"][0].tolist()
        return tuple(token_id for token_id in ids if token_id != image_token_id)

    @torch.inference_mode()
    def generate_all(
        self,
        texts: Sequence[str],
        images: Sequence[Image.Image],
        image_features: Tensor,
        max_new_tokens: int,
    ) -> tuple[GreedyAnswer, ...]:
        """Answer prompts greedily in a batch; `image_features` (B, N, C) are `images`'."""
        inputs = self.inputs(texts, images)
        output = self.model.generate(
            **self.arguments(inputs, image_features, max_new_tokens),
            num_beams=1,
            output_scores=True,
            return_dict_in_generate=True,
        )
        answers = output.sequences[:, self.num_prompt_tokens(inputs) :].tolist()
        tops = [logits.float().topk(_NUM_TOP_LOGITS) for logits in output.scores]
        ends = self.model.generation_config.eos_token_id
        end_ids = set(ends if isinstance(ends, list) else [ends])
        ended_answers = []
        for row, answer in enumerate(answers):
            num_tokens = 1
            while num_tokens < len(answer) and answer[num_tokens - 1] not in end_ids:
                num_tokens += 1  # padding follows
            top_logits = []
            for top in tops[:num_tokens]:
                pairs = zip(top.indices[row].tolist(), top.values[row].tolist(), strict=True)
                top_logits.append(dict(pairs))
            ended_answers.append(GreedyAnswer(tuple(answer[:num_tokens]), tuple(top_logits)))
        return tuple(ended_answers)

    def inputs(self, texts: Sequence[str], images: Sequence[Image.Image]) -> Any:
        """Return the processor's inputs, padded on the left for decoders that continue them."""
        prompts = list(texts)
        side = "right"
        if not self.model.config.is_encoder_decoder:
            prompts = list(map("<image>{}".format, texts))  # Florence-2's processor adds it itself
            side = "left"
        self.processor.tokenizer.padding_side = side
        return self.processor(images=list(images), text=prompts, padding=True, return_tensors="pt")

    def arguments(self, inputs: Any, image_features: Tensor, max_new_tokens: int) -> dict[str, Any]:
        """Return the arguments of `generate` that do not depend on the search."""
        vision_output = BaseModelOutputWithPooling(pooler_output=image_features)
        arguments = {
            "mm_encoder_outputs": {"image": vision_output},
            "max_new_tokens": max_new_tokens,
            "do_sample": False,
        }
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            if name in inputs:
                arguments[name] = inputs[name]
        return arguments

    def num_prompt_tokens(self, inputs: Any) -> int:
        """Return the number of tokens that `generate` returns before the answer."""
        return 1 if self.model.config.is_encoder_decoder else int(inputs["input_ids"].shape[1])


def load_processor(folder: Path) -> Any:
    """Load a checkpoint's processor; raise `SourceError`."""
    try:
        return _Processor.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers raises many
        raise SourceError(
            f"transformers cannot load the checkpoint's processor: {one_line(error)}"
        ) from error


LayerT = TypeVar("LayerT")

_FLOAT32_BYTES = 4
_LAYER_INDEX = re.compile(r"(?<=\blayers\.)\d+")

Buffers = dict[tuple[str, ...], Tensor]  # keyed by names in a layer


@dataclass(frozen=True, slots=True)
class StreamedWeights(DecoderWeights):
    """The weights of a decoder whose layers are built at each use."""

    max_resident_bytes: ClassVar[int] = MAX_RESIDENT_BYTES
    buffers: Buffers | None = None  # None: of what stays in memory

    def layers(self, num_layers: int, build: Callable[[int, Self], LayerT]) -> Sequence[LayerT]:
        """Return a stack of layers: the first stay in memory, the others are built at each use."""
        streamed = replace(self, buffers={})
        builders = list[Callable[[], LayerT]]()
        num_bytes = 0
        for index in range(num_layers):
            weights = self.at(f"layers.{index}")
            num_bytes += weights.num_bytes
            if num_bytes > self.max_resident_bytes:
                builders.append(partial(build, index, streamed.at(f"layers.{index}")))
            else:
                builders.append(partial(_resident, build(index, weights)))
        return _BuiltLayers(builders)

    @property
    def num_bytes(self) -> int:
        num_weights = 0
        for name, tensor in self.source.items():
            if name.startswith(self.prefix):
                num_weights += tensor.numel()
        return _FLOAT32_BYTES * num_weights

    def _allocate(self, names: Sequence[str], shape: Sequence[int]) -> Tensor:
        if self.buffers is None:
            return DecoderWeights._allocate(self, names, shape)
        place = _LAYER_INDEX.sub("", self.prefix), *names
        if place not in self.buffers:
            self.buffers[place] = DecoderWeights._allocate(self, names, shape)
        return self.buffers[place]

    def _linear_of(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """Return a layer that reads `weight` itself: packing costs more than a step's products."""
        if self.buffers is None or not can_pack(weight):
            return DecoderWeights._linear_of(self, weight, bias)
        return PackedLinear.view(weight, bias)


def load_for_checks(
    folder: Path,
    family: Family,
    precision: Precision,
    is_large: bool,
    max_positions: int = 0,
    device: Device = "cpu",
) -> Decoder:
    """Load a decoder; that of a large model in float32 runs layer by layer on the CPU."""
    is_streamed = is_large and (precision, device) == ("float32", "cpu")
    weights_of = StreamedWeights if is_streamed else DecoderWeights
    return load_decoder(folder, family, precision, device, max_positions, weights_of)


def _resident(layer: LayerT) -> LayerT:
    return layer


class _BuiltLayers(Sequence[LayerT], Generic[LayerT]):
    """Layers, each returned by a function when it is read."""

    def __init__(self, builders: Sequence[Callable[[], LayerT]]) -> None:
        self._builders = builders

    # no caller takes a slice
    def __getitem__(self, index: int) -> LayerT:  # type: ignore[override]
        return self._builders[index]()

    def __len__(self) -> int:
        return len(self._builders)
