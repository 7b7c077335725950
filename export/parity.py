"""Whether an export does what the original does: the same image features, then the same tokens.

Image features may differ by float32 rounding only. Tokens may differ only where the reference itself had to choose
between logits so close that rounding decides; such near ties are counted.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export.errors import ParityError
from export.probes import Probe
from export.reference import Reference, ReferenceAnswer
from runners.artifacts import Family, Precision
from runners.decoders import load_decoder
from runners.generation import Decoder, generate_all
from runners.sequences import GeneratedSequence, SequenceError, SequenceRequest
from runners.vision_encoder import VisionEncoder

MIN_COSINE = 0.9999
MAX_RELATIVE_ERROR = 1e-3  # of the largest reference value; rounding in random towers of real widths came to 5e-5
# float32: well above the rounding of sums in another order. bfloat16: two steps of a logit between 16 and 32.
NEAR_TIE_LOGITS: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.25}


@dataclass(frozen=True, slots=True)
class FeatureParity:
    """How close the image features of all probes are."""

    num_images: int
    min_cosine: float  # over image tokens
    max_abs_error: float
    max_abs_reference: float


@dataclass(frozen=True, slots=True)
class TokenParity:
    """How many prompts were answered with the same tokens, and how many differ after a near tie."""

    num_prompts: int
    num_tokens: int
    num_near_ties: int


def check_parity(
    folder: Path, family: Family, precision: Precision, reference: Reference, probes: Sequence[Probe]
) -> dict[str, Any]:
    """Return the measurements for the manifest; raise `ParityError` if export and reference differ."""
    features = _encode(folder, probes)
    expected_features = reference.image_features([probe.image for probe in probes])
    feature_parity = compare_features(features, expected_features.numpy())
    answers = _generate(load_decoder(folder, family, precision, "cpu"), features, probes, reference)
    expected_answers = [
        reference.generate(probe.text, probe.image, image_features, probe.max_new_tokens)
        for probe, image_features in zip(probes, expected_features, strict=True)
    ]
    token_parity = compare_tokens([answer.token_ids for answer in answers], expected_answers, precision)
    return {"image_features": asdict(feature_parity), "tokens": asdict(token_parity)}


def compare_features(features: NDArray[np.float32], expected: NDArray[np.float32]) -> FeatureParity:
    """Compare image features (B, N, C); raise `ParityError` if they differ by more than rounding, or are not finite."""
    if features.shape != expected.shape:
        raise ParityError(f"image features have shape {features.shape}, the reference's {expected.shape}")
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(expected, axis=-1)
    measured = FeatureParity(
        num_images=len(features),
        min_cosine=float(((features * expected).sum(axis=-1) / norms).min()),
        max_abs_error=float(np.abs(features - expected).max()),
        max_abs_reference=float(np.abs(expected).max()),
    )
    is_close = measured.max_abs_error <= MAX_RELATIVE_ERROR * measured.max_abs_reference  # False for NaN
    if not (is_close and measured.min_cosine >= MIN_COSINE):
        raise ParityError(f"image features differ from the reference: {measured}")
    return measured


def compare_tokens(
    answers: Sequence[Sequence[int]], expected_answers: Sequence[ReferenceAnswer], precision: Precision
) -> TokenParity:
    """Compare answers token for token; raise `ParityError` at a difference that no near tie explains."""
    num_near_ties = 0
    for index, (answer, expected) in enumerate(zip(answers, expected_answers, strict=True)):
        step = first_difference(answer, expected.token_ids)
        if step is None:
            continue
        if not _is_near_tie(answer, expected, step, NEAR_TIE_LOGITS[precision]):
            raise ParityError(
                f"prompt {index} is answered with tokens {list(answer)}, "
                f"by the reference with {list(expected.token_ids)}; they differ from token {step} on"
            )
        num_near_ties += 1
    return TokenParity(len(answers), sum(map(len, answers)), num_near_ties)


def first_difference(answer: Sequence[int], expected: Sequence[int]) -> int | None:
    """Return where two token sequences start to differ, None if they are equal."""
    if tuple(answer) == tuple(expected):
        return None
    pairs = zip(answer, expected, strict=False)
    return next((step for step, (one, other) in enumerate(pairs) if one != other), min(len(answer), len(expected)))


def _is_near_tie(answer: Sequence[int], expected: ReferenceAnswer, step: int, tolerance: float) -> bool:
    if step >= min(len(answer), len(expected.token_ids)):
        return False
    logits = expected.logits[step]
    return bool(logits.max() - logits[answer[step]] <= tolerance)


def _encode(folder: Path, probes: Sequence[Probe]) -> NDArray[np.float32]:
    encoder = VisionEncoder(folder)
    encoder.load()
    return np.concatenate([encoder.encode(np.asarray(probe.image)[None]) for probe in probes])


def _generate(
    decoder: Decoder[Any], features: NDArray[np.float32], probes: Sequence[Probe], reference: Reference
) -> list[GeneratedSequence]:
    """Answer all probes in one batch, once their prompts are known to be tokenised as the reference does."""
    requests = []
    for probe, image_features in zip(probes, features, strict=True):
        prompt_ids = decoder.prompt_ids([(segment.text, segment.is_control) for segment in probe.prompt])
        expected_ids = reference.prompt_ids(probe.text, probe.image)
        if prompt_ids != expected_ids:
            raise ParityError(f"{probe.text!r} is tokenised as {prompt_ids}, by the reference as {expected_ids}")
        requests.append(SequenceRequest(torch.from_numpy(image_features), prompt_ids, probe.max_new_tokens))
    try:
        return generate_all(decoder, requests)
    except SequenceError as error:
        raise ParityError(f"a prompt has no answer: {error}") from error
