"""The measurements of an export on its probes: parity with the reference, then the difference of each other precision.

A default precision that breaks the model stops the export; any other one is logged, and an encoder in it is left out.
Parts are loaded one after another, so that only one is in memory. Everything runs on the CPU: on CUDA, float16 and
bfloat16 round the weights in the same way but sum in another order.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.checkpoints.errors import ParityError
from export.checks.parity import ReferenceAnswers, check_answers, compare_features, make_requests
from export.checks.probes import Probe
from runners.artifacts.manifest import Part, Precision
from runners.decoder.batch import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from tasks.catalog import CatalogEntry

logger = logging.getLogger(__name__)

# Below this a precision is broken; whether it is accurate enough is decided by the precision record. int8 features
# reach 0.9998 in the embedded checkpoints, and 0.966 in a random tower of Florence-2-base's size.
MIN_MEAN_COSINE = 0.8


@dataclass(frozen=True, slots=True)
class Difference:
    """The difference of a precision from float32, over image tokens' features or over steps' logits."""

    mean_cosine: float
    min_cosine: float
    max_abs_error: float
    max_abs_float32: float


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """How often the best token equals float32's, each step given the reference's tokens before it."""

    num_tokens: int
    num_same: int


def measure(
    folder: Path,
    entry: CatalogEntry,
    precisions: Mapping[Part, Sequence[Precision]],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
) -> dict[str, Any]:
    """Return the measurements for the manifest; raise `ParityError` if parity or a default precision fails."""
    features = _encode(folder, "float32", probes)
    parity = compare_features(features, expected.image_features)
    decoder = load_decoder(folder, entry.family, "float32", "cpu")
    requests = make_requests(decoder, features, probes, expected)
    tokens = check_answers(decoder, requests, expected)
    answers = [answer.token_ids for answer in expected.answers]
    logits = list(_forced_logits(decoder, requests, answers))
    del decoder

    def of_encoder(precision: Precision) -> dict[str, Any]:
        rows = torch.from_numpy(_encode(folder, precision, probes)).flatten(end_dim=1)
        return asdict(compare(f"the {precision} encoder", rows, torch.from_numpy(features).flatten(end_dim=1)))

    def of_decoder(precision: Precision) -> dict[str, Any]:
        other = load_decoder(folder, entry.family, precision, "cpu")
        return _measure_decoder(precision, other, requests, answers, logits)

    return {
        "image_features": asdict(parity),
        "tokens": asdict(tokens),
        "encoder": dict(each_measured("encoder", entry, precisions["encoder"], of_encoder)),
        "decoder": dict(each_measured("decoder", entry, precisions["decoder"], of_decoder)),
    }


def each_measured(
    part: Part, entry: CatalogEntry, precisions: Sequence[Precision], measure_one: Callable[[Precision], dict[str, Any]]
) -> Iterator[tuple[Precision, dict[str, Any]]]:
    """Yield the measurements of each precision but float32; raise `ParityError` if a default breaks the model."""
    defaults = {of_device[part] for of_device in entry.precision.values()}
    for precision in precisions:
        try:
            if precision != "float32":
                yield precision, measure_one(precision)
        except ParityError as error:
            if precision in defaults:
                raise ParityError(f"{error}; choose another precision in models/catalog.yaml") from error
            logger.warning("%s: %s; the precision is skipped, because it is not a default", entry.id, error)


def _measure_decoder(
    precision: Precision,
    decoder: Decoder[Any],
    requests: Sequence[SequenceRequest],
    answers: Sequence[Sequence[int]],
    logits: Sequence[Tensor],
) -> dict[str, Any]:
    others = list(_forced_logits(decoder, requests, answers))
    is_same = [torch.equal(other.argmax(), own.argmax()) for other, own in zip(others, logits, strict=True)]
    difference = compare(f"the {precision} decoder", torch.stack(others), torch.stack(list(logits)))
    return asdict(difference) | asdict(TokenAgreement(len(is_same), sum(is_same)))


def compare(name: str, rows: Tensor, float32_rows: Tensor) -> Difference:
    """Compare rows of features or logits; raise `ParityError` if their mean cosine is below `MIN_MEAN_COSINE`."""
    cosines = torch.cosine_similarity(rows, float32_rows, dim=-1)
    measured = Difference(
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_abs_error=float((rows - float32_rows).abs().max()),
        max_abs_float32=float(float32_rows.abs().max()),
    )
    if not measured.mean_cosine >= MIN_MEAN_COSINE:  # also fails for NaN
        raise ParityError(f"{name} differs from float32: {measured}")
    return measured


@torch.inference_mode()
def _forced_logits(
    decoder: Decoder[Any], requests: Sequence[SequenceRequest], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Yield the logits (V,) of every token of every answer, given the answer's own tokens before it."""
    cache = decoder.new_cache(len(requests))
    logits = decoder.prefill(cache, requests, 0)
    for step in range(max(map(len, answers))):
        yield from (row.float() for row, answer in zip(logits, answers, strict=True) if step < len(answer))
        given = torch.tensor([answer[min(step, len(answer) - 1)] for answer in answers])
        logits = decoder.decode_step(cache, given)


def _encode(folder: Path, precision: Precision, probes: Sequence[Probe]) -> NDArray[np.float32]:
    encoder = VisionEncoder(folder, precision=precision)
    encoder.load()
    return np.concatenate([encoder.encode(np.asarray(probe.image)[None]) for probe in probes])
