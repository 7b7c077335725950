"""The measurements of an export on its probes: parity with the reference, then the difference of
each other precision.

A precision that breaks the model is logged and left out; where it was the default, float32 takes
its place. Parts are loaded one after another, so that only one is in memory. Everything runs on the
CPU, so the result is the same on every host: float16 encoders in true half arithmetic
(half_arithmetic.py), float16 and bfloat16 decoders in torch, which keeps hidden states in their
dtype. CUDA rounds in the same places but sums in another order.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.checkpoints.errors import ParityError
from export.checks.half_arithmetic import HalfEncoder
from export.checks.parity import (
    FeatureParity,
    ReferenceAnswers,
    check_answers,
    compare_features,
    make_requests,
)
from export.checks.probes import Probe, extreme_images
from export.checks.streaming import load_for_checks
from export.progress import Progress
from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.session import VisionEncoder
from tasks.catalog import CatalogEntry
from wire.artifacts.manifest import Part, Precision, vision_encoder_file

logger = logging.getLogger(__name__)

# Below this a precision is broken; whether it is accurate enough is decided by the precision
# record. int8 features reach 0.9998 in the embedded checkpoints, and 0.966 in a random tower of
# Florence-2-base's size.
MIN_MEAN_COSINE = 0.8


@dataclass(frozen=True, slots=True)
class Difference:
    """A precision's difference from float32, over image features or over steps' logits."""

    mean_cosine: float
    min_cosine: float
    max_abs_error: float
    max_abs_float32: float


@dataclass(frozen=True, slots=True)
class MeasuredEncoders:
    """Float32 features (B, N, C) of probes and extreme images, and the measurements."""

    features: NDArray[np.float32]
    extreme_features: NDArray[np.float32]
    parity: FeatureParity
    by_precision: Mapping[Precision, Mapping[str, Any]]  # without those that fail


def measure_encoders(
    folder: Path,
    entry: CatalogEntry,
    precisions: Sequence[Precision],
    images: Sequence[Image.Image],
    expected_features: NDArray[np.float32],
    progress: Progress,
) -> MeasuredEncoders:
    """Compare the encoders with the reference's features of `images`.

    Raise `ParityError` if float32 differs.
    """
    progress.begin("comparing image features with transformers")
    features = _encode(folder, "float32", images)
    extremes = extreme_images(images[0].size)
    parity = compare_features(features, expected_features)
    extreme_features = _encode(folder, "float32", list(extremes.values()))

    def of_precision(precision: Precision) -> dict[str, Any]:
        progress.begin(f"measuring the encoder in {precision}")
        if precision == "float16":
            few = {"scene": images[0], **extremes}
            return measure_half_encoder(
                folder, few, np.concatenate([features[:1], extreme_features])
            )
        rows = _encode(folder, precision, images)
        return asdict(compare(f"the {precision} encoder", _tensors(rows), _tensors(features)))

    measured = dict(each_measured("encoder", entry, precisions, of_precision))
    return MeasuredEncoders(features, extreme_features, parity, measured)


def measure(
    folder: Path,
    entry: CatalogEntry,
    precisions: Mapping[Part, Sequence[Precision]],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
    progress: Progress,
    is_large: bool = False,
) -> dict[str, Any]:
    """Return the measurements for the manifest, without precisions that fail.

    Raise `ParityError` if parity fails.

    The float32 decoder of a large model runs layer by layer.
    """
    images = [probe.image for probe in probes]
    encoders = measure_encoders(
        folder, entry, precisions["encoder"], images, expected.image_features, progress
    )
    progress.begin("comparing answers with transformers")
    decoder = load_for_checks(folder, entry.family, "float32", is_large)
    requests = make_requests(decoder, encoders.features, probes, expected)
    tokens = check_answers(decoder, requests, expected)
    # One step suffices for these: the prefill multiplies the features by every weight.
    requests += [
        replace(requests[0], image_features=torch.from_numpy(each))
        for each in encoders.extreme_features
    ]
    answers = [
        *(answer.token_ids for answer in expected.answers),
        *[(0,)] * len(encoders.extreme_features),
    ]
    logits = list(_forced_logits(decoder, requests, answers))
    del decoder

    def of_decoder(precision: Precision) -> dict[str, Any]:
        progress.begin(f"measuring the decoder in {precision}")
        other = load_for_checks(folder, entry.family, precision, is_large)
        return measure_decoder(precision, other, requests, answers, logits)

    return {
        "image_features": asdict(encoders.parity),
        "tokens": asdict(tokens),
        "encoder": encoders.by_precision,
        "decoder": dict(each_measured("decoder", entry, precisions["decoder"], of_decoder)),
    }


def each_measured(
    part: Part,
    entry: CatalogEntry,
    precisions: Sequence[Precision],
    measure_one: Callable[[Precision], dict[str, Any]],
) -> Iterator[tuple[Precision, dict[str, Any]]]:
    """Yield each other precision's measurements; log and skip those that break the model."""
    for precision in precisions:
        try:
            if precision != "float32":
                yield precision, measure_one(precision)
        except ParityError as error:
            devices = [
                device for device, parts in entry.precision.items() if parts[part] == precision
            ]
            default = (
                f"; the default on {' and '.join(devices)} is float32 instead" if devices else ""
            )
            logger.warning("%s: %s; %s is left out%s", entry.id, error, precision, default)


def measure_half_encoder(
    folder: Path, images: Mapping[str, Image.Image], float32_features: NDArray[np.float32]
) -> dict[str, Any]:
    """Measure the float16 encoder in true half arithmetic.

    Raise `ParityError` if it fails on one of `images`.
    """
    encoder = HalfEncoder(folder / vision_encoder_file("float16"))
    features = np.empty_like(float32_features)
    for index, (name, image) in enumerate(images.items()):
        features[index] = encoder.encode(np.asarray(image)[None])[0]
        pair = _tensors(features[index : index + 1]), _tensors(float32_features[index : index + 1])
        compare(f"the float16 encoder on the {name} image", *pair)
    return asdict(compare("the float16 encoder", _tensors(features), _tensors(float32_features)))


def measure_decoder(
    precision: Precision,
    decoder: Decoder,
    requests: Sequence[SequenceRequest],
    answers: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
) -> dict[str, Any]:
    is_same: list[bool] = []

    def others() -> Iterator[Tensor]:
        for row, float32_row in zip(
            _forced_logits(decoder, requests, answers), logits, strict=True
        ):
            is_same.append(torch.equal(row.argmax(), float32_row.argmax()))
            yield row

    difference = compare(f"the {precision} decoder", others(), logits)
    # how often the best token equals float32's, given the reference's earlier tokens
    return asdict(difference) | {"num_tokens": len(is_same), "num_same": sum(is_same)}


def compare(name: str, rows: Iterable[Tensor], float32_rows: Iterable[Tensor]) -> Difference:
    """Compare (…, C) item by item: all logits of a precision would take gigabytes.

    Raise `ParityError` if the mean of the cosines, over C, is below `MIN_MEAN_COSINE`.
    """
    each = [
        (torch.cosine_similarity(row, other, dim=-1), (row - other).abs().max(), other.abs().max())
        for row, other in zip(rows, float32_rows, strict=True)
    ]
    cosines = torch.cat([cosine.flatten() for cosine, _, _ in each])
    measured = Difference(
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_abs_error=float(torch.stack([error for _, error, _ in each]).max()),
        max_abs_float32=float(torch.stack([largest for _, _, largest in each]).max()),
    )
    if not measured.mean_cosine >= MIN_MEAN_COSINE:  # also fails for NaN
        raise ParityError(f"{name} differs from float32: {measured}")
    return measured


@torch.inference_mode()
def _forced_logits(
    decoder: Decoder, requests: Sequence[SequenceRequest], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Yield the logits (V,) of every answer's tokens, given the answer's own earlier tokens."""
    engine = EagerEngine(decoder, len(requests))
    logits = engine.prefill(requests, 0)
    for step in range(max(map(len, answers))):
        yield from (
            row.float() for row, answer in zip(logits, answers, strict=True) if step < len(answer)
        )
        logits = engine.decode([[answer[min(step, len(answer) - 1)]] for answer in answers])


def _encode(
    folder: Path, precision: Precision, images: Sequence[Image.Image]
) -> NDArray[np.float32]:
    encoder = VisionEncoder(folder, precision=precision)
    encoder.load()
    return torch.cat([encoder.encode(np.asarray(image)[None]) for image in images]).numpy()


def _tensors(features: NDArray[np.float32]) -> list[Tensor]:
    """Return the (N, C) of each image of (B, N, C)."""
    return list(torch.from_numpy(features))
