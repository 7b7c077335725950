"""What an export's files do with the probes: parity with the original, then what each other precision changes.

A default that breaks the model ends the export; what is no default and breaks it is told, and such an encoder left out.
Parts are loaded one after another, so that no two are in memory at once. Everything runs on the CPU: what float16 and
bfloat16 make of it on CUDA has the same roundings of weights, not the same sums.
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

from export.errors import ParityError
from export.parity import ReferenceAnswers, check_answers, compare_features, make_requests
from export.probes import Probe
from runners.artifacts.manifest import Part, Precision
from runners.decoder.batch import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from tasks.catalog import CatalogEntry

logger = logging.getLogger(__name__)

# A precision below is broken, not rough; whether a rough one holds is for the task accuracy. At int8 features had
# 0.9998 in the embedded checkpoints, 0.966 in a random tower of Florence-2-base's size, which amplifies every rounding.
MIN_MEAN_COSINE = 0.8


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a precision is from float32, over image tokens' features or over steps' logits."""

    mean_cosine: float
    min_cosine: float
    max_abs_error: float
    max_abs_float32: float


@dataclass(frozen=True, slots=True)
class TokenAgreement:
    """How often the best token is float32's, each step after the tokens that the reference wrote."""

    num_tokens: int
    num_same: int


def measure(
    folder: Path,
    entry: CatalogEntry,
    precisions: Mapping[Part, Sequence[Precision]],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
) -> dict[str, Any]:
    """Return the measurements for the manifest; raise `ParityError` if a file is not faithful."""
    features = _encode(folder, "float32", probes)
    parity = compare_features(features, expected.image_features)
    decoder = load_decoder(folder, entry.family, "float32", "cpu")
    requests = make_requests(decoder, features, probes, expected)
    tokens = check_answers(decoder, requests, expected)
    answers = [answer.token_ids for answer in expected.answers]
    logits = list(_forced_logits(decoder, requests, answers))
    del decoder

    def of_encoder(precision: Precision) -> dict[str, Any]:
        return _measure_encoder(folder, precision, probes, features)

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
    """Yield what each precision but float32 changes; raise `ParityError` where a default breaks the model."""
    defaults = {of_device[part] for of_device in entry.precision.values()}
    for precision in precisions:
        try:
            if precision != "float32":
                yield precision, measure_one(precision)
        except ParityError as error:
            if precision in defaults:
                raise ParityError(f"{error}; models/catalog.yaml must not name it") from error
            logger.warning("%s: %s; it is no default", entry.id, error)


def _measure_encoder(
    folder: Path, precision: Precision, probes: Sequence[Probe], features: NDArray[np.float32]
) -> dict[str, Any]:
    rows = torch.from_numpy(features).flatten(end_dim=1)
    others = torch.from_numpy(_encode(folder, precision, probes)).flatten(end_dim=1)
    return asdict(compare(f"the {precision} encoder", others, rows))


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
    """Compare rows of numbers; raise `ParityError` if those of `name` have little to do with float32's."""
    cosines = torch.cosine_similarity(rows, float32_rows, dim=-1)
    measured = Difference(
        mean_cosine=float(cosines.mean()),
        min_cosine=float(cosines.min()),
        max_abs_error=float((rows - float32_rows).abs().max()),
        max_abs_float32=float(float32_rows.abs().max()),
    )
    if not measured.mean_cosine >= MIN_MEAN_COSINE:  # NaN is not
        raise ParityError(f"{name} differs from float32: {measured}")
    return measured


@torch.inference_mode()
def _forced_logits(
    decoder: Decoder[Any], requests: Sequence[SequenceRequest], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Yield the logits (V,) of every token of every answer, each after the answer's own tokens before it."""
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
