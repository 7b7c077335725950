"""Time of the vision encoder's graphs, and their features against float32's.

`python -m export.bench.encoders CHECKPOINT` exports a checkpoint as transformers computes it and as
`python -m export` writes it, and encodes a photograph with each graph in turn. Prints medians.
Wall-clock time depends on the machine's other users, processor time less. The calling thread runs
all that is not divided between the threads, and its share of the rest: an image cannot take less
than its processor time.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from export.artifacts.encoders import load_vision_model, make_encoders
from export.artifacts.onnx_graphs import export_vision_encoder, write_at_precision
from export.artifacts.vision_module import ImageInput, VisionEncoderModule, read_image_input
from export.bench.models import ALL_LAYERS, RANDOM_GAIN
from export.checkpoints.jobs import PHOTOGRAPHS
from export.checkpoints.random_weights import SHAPES, write_random_checkpoint
from export.checks.reference import load_processor
from imaging.files import resize
from imaging.local_files import read_image
from runners.encoder.session import VisionEncoder
from wire.artifacts.manifest import Precision, vision_encoder_file

_PRECISIONS: tuple[Precision, ...] = ("int8", "float32")


@dataclass(frozen=True, slots=True)
class EncodingTime:
    """The time of one image, in seconds."""

    wall_s: float
    processor_s: float
    calling_thread_s: float


def export_as_transformers(checkpoint: Path, image_input: ImageInput, folder: Path) -> None:
    """Write the graphs of transformers' own modules into `folder`."""
    module = VisionEncoderModule(load_vision_model(checkpoint), image_input)
    export_vision_encoder(module, image_input.size_wh, folder / vision_encoder_file("float32"))
    write_at_precision(folder, "int8", module.config)


def load_encoders(folder: Path, name: str, num_threads: int) -> dict[str, VisionEncoder]:
    """Return loaded encoders of the graphs in `folder`, by precision and `name`."""
    encoders = {f"{each} {name}": VisionEncoder(folder, num_threads, each) for each in _PRECISIONS}
    for encoder in encoders.values():
        encoder.load()
    return encoders


def measure(encoder: VisionEncoder, pixels: NDArray[np.uint8]) -> EncodingTime:
    """Encode once."""
    starts = time.perf_counter(), time.process_time(), time.thread_time()
    encoder.encode(pixels)
    ends = time.perf_counter(), time.process_time(), time.thread_time()
    return EncodingTime(*(end - start for start, end in zip(starts, ends, strict=True)))


def print_table(
    encoders: Mapping[str, VisionEncoder], pixels: NDArray[np.uint8], num_rounds: int
) -> None:
    """Print a row for each encoder; ratios are to the first, cosines with the last."""
    features = {name: encoder.encode(pixels) for name, encoder in encoders.items()}  # also warms up
    rounds = [
        {name: measure(encoder, pixels) for name, encoder in encoders.items()}
        for _ in range(num_rounds)
    ]
    first, *_, last = encoders
    print(
        f"{'graph':24}{'ms':>8}{'ratio':>7}{'processor ms':>14}{'ratio':>7}"
        f"{'thread ms':>11}{'ratio':>7}"
        "  min cosine"
    )
    for name in encoders:
        cells = f"{name:24}"
        for field, width in (("wall_s", 8), ("processor_s", 14), ("calling_thread_s", 11)):
            own, base = (
                statistics.median(getattr(each[of], field) for each in rounds)
                for of in (name, first)
            )
            cells += f"{own * 1e3:{width}.1f}{base / own:7.2f}"
        cosine = torch.cosine_similarity(features[name], features[last], dim=-1).min()
        print(f"{cells}{float(cosine):12.4f}")


def read_photograph(image_input: ImageInput) -> NDArray[np.uint8]:
    """Return the first photograph of the export's check, resized (1, H, W, 3)."""
    photograph = read_image(min(PHOTOGRAPHS.glob("*.jpg")))
    return np.asarray(resize(photograph, image_input.size_wh, image_input.resample))[None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Export and measure one checkpoint."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.encoders", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "checkpoint", help=f"a folder, or the shape of random weights: {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--rounds", type=int, default=9, metavar="N", help="of one image each; default: %(default)s"
    )
    parser.add_argument(
        "--threads", type=int, default=2, metavar="N", help="of ONNX Runtime; default: %(default)s"
    )
    parsed = parser.parse_args(arguments)
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(parsed.checkpoint)
        before = Path(scratch) / "before"
        after = Path(scratch) / "after"
        if parsed.checkpoint in SHAPES:
            checkpoint = Path(scratch) / "checkpoint"
            write_random_checkpoint(parsed.checkpoint, checkpoint, ALL_LAYERS, gain=RANDOM_GAIN)
        image_input = read_image_input(load_processor(checkpoint).image_processor)
        before.mkdir()
        after.mkdir()
        export_as_transformers(checkpoint, image_input, before)
        make_encoders(checkpoint, image_input, _PRECISIONS, after)
        encoders = load_encoders(before, "of transformers", parsed.threads)
        encoders = load_encoders(after, "of the export", parsed.threads) | encoders
        order = (
            "int8 of transformers",
            "int8 of the export",
            "float32 of the export",
            "float32 of transformers",
        )
        print_table(
            {name: encoders[name] for name in order}, read_photograph(image_input), parsed.rounds
        )


if __name__ == "__main__":
    main()
