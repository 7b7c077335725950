"""Time of a decode step with LoRA adapters over that without (`python -m export.bench.adapters
florence-2-base`).

Random weights in a published configuration, random adapters. Steps of the base alone alternate with
steps in which the rows take the adapters in turn, over the same number of rows: the ratio is that
of one run. Prints JSON.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from export.artifacts.checkpoint_tensors import CheckpointTensors
from export.artifacts.decoder_weights import write_decoder_weights
from export.checkpoints.random_weights import SHAPES, write_random_checkpoint
from runners.artifacts.adapter_folder import DOWN, UP
from runners.artifacts.manifest import DECODER_FILE, Family
from runners.decoder.eager_engine import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.adapters import Adapters
from runners.models.load import load_decoder

_ALL_LAYERS = 100
_NUM_STEPS = 40
_NUM_WARM_UP = 4
_NUM_ANSWER_TOKENS = 200  # room for prompt and steps
_TARGETS: Mapping[str, tuple[str, ...]] = {
    "q_proj and v_proj": ("q_proj", "v_proj"),  # PEFT's default
    "all linear layers": ("_proj", "fc1", "fc2"),
}


def random_adapter(decoder_file: Path, targets: tuple[str, ...], rank: int) -> dict[str, Tensor]:
    """Return a random adapter of all layers whose names end with one of `targets`."""
    adapter: dict[str, Tensor] = {}
    with safe_open(decoder_file, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118
            layer = name.removesuffix(".weight")
            if name != layer and layer.endswith(targets):
                num_out, num_in = tensors.get_slice(name).get_shape()
                adapter[layer + DOWN] = torch.randn(rank, num_in) / num_in**0.5
                adapter[layer + UP] = torch.randn(num_out, rank) / 100
    return adapter


def measure(decoder: Decoder, request: SequenceRequest, by_row: Sequence[str]) -> dict[str, float]:
    """Return the median times of steps of the base and of the adapters, and their ratio."""
    engines = {name: EagerEngine(decoder, len(by_row)) for name in ("base", "adapters")}
    tokens = [[5]] * len(by_row)
    times = {name: list[float]() for name in engines}
    for engine in engines.values():
        engine.prefill([request] * len(by_row), 0)
    engines["adapters"].cache.adapters[:] = by_row
    for _ in range(_NUM_WARM_UP + _NUM_STEPS):
        for name, engine in engines.items():
            start_s = time.perf_counter()
            engine.decode(tokens)
            times[name].append(time.perf_counter() - start_s)
    medians = {name: statistics.median(each[_NUM_WARM_UP:]) for name, each in times.items()}
    return {f"{name}_ms": 1000 * median for name, median in medians.items()} | {
        "ratio": medians["adapters"] / medians["base"]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one configuration."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.adapters", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--layers", type=int, default=_ALL_LAYERS, help="maximum in every stack")
    parser.add_argument("--precision", choices=("float32", "int8", "bfloat16"), default="float32")
    parsed = parser.parse_args(arguments)
    shape = SHAPES[parsed.name]
    keys = [f"adapter-{index}" for index in range(parsed.adapters)]
    family: Family = "florence2" if shape.tokenizer_of.startswith("florence") else "paligemma"
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        write_random_checkpoint(parsed.name, folder, parsed.layers)
        write_decoder_weights(CheckpointTensors.open(folder), folder / DECODER_FILE)
        width = int(shape.config(1).get_text_config().hidden_size)
        features = torch.zeros(shape.num_image_tokens, width)
        for targets, suffixes in _TARGETS.items():
            adapters = Adapters()
            positions = shape.num_image_tokens + _NUM_ANSWER_TOKENS
            decoder = load_decoder(
                folder, family, parsed.precision, "cpu", positions, adapters=adapters
            )
            for key in keys:
                adapters.add(key, random_adapter(folder / DECODER_FILE, suffixes, parsed.rank))
            request = SequenceRequest(
                features, decoder.text.prompt_ids([("What is it?", False)]), 1
            )
            measured = measure(
                decoder, request, [keys[row % len(keys)] for row in range(parsed.rows)]
            )
            print(json.dumps(vars(parsed) | {"layers": targets} | measured), flush=True)


if __name__ == "__main__":
    main()
