"""Parity of an export with the reference, in float32: the same image features, then the same
tokens.

Image features may differ by rounding only. Tokens may differ only at a near tie, where the
reference's own logits are so close that rounding decides; near ties are counted.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from export.checkpoints.errors import ParityError
from export.checks.probes import Probe
from export.checks.reference import GreedyAnswer, Reference
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.tokens.errors import SequenceError

MIN_COSINE = 0.9999
# relative to the largest reference value; random towers of real widths reached 5e-5
MAX_RELATIVE_ERROR = 1e-3
NEAR_TIE_LOGITS = 1e-3  # well above the rounding of sums in another order


@dataclass(frozen=True, slots=True)
class FeatureParity:
    """The largest differences of image features over all probes."""

    num_images: int
    min_cosine: float  # over image tokens
    max_abs_error: float
    max_abs_reference: float


@dataclass(frozen=True, slots=True)
class TokenParity:
    """The numbers of prompts, of tokens, and of answers that differ after a near tie."""

    num_prompts: int
    num_tokens: int
    num_near_ties: int


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The reference's results for all probes: its model is freed before the export loads."""

    image_features: NDArray[np.float32]  # (probes, N, C)
    prompt_ids: tuple[tuple[int, ...], ...]
    answers: tuple[GreedyAnswer, ...]


def run_reference(reference: Reference, probes: Sequence[Probe]) -> ReferenceAnswers:
    """Compute image features, prompt ids and answers of every probe."""
    images = [probe.image for probe in probes]
    texts = [probe.text for probe in probes]
    image_features = reference.image_features(images)
    answers = reference.generate_all(texts, images, image_features, probes[0].max_new_tokens)
    prompt_ids = (reference.prompt_ids(probe.text, probe.image) for probe in probes)
    return ReferenceAnswers(image_features.numpy(), tuple(prompt_ids), answers)


def make_requests(
    decoder: Decoder,
    features: NDArray[np.float32],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
) -> list[SequenceRequest]:
    """Return the probes as decoder requests.

    Raise `ParityError` if a prompt is tokenised differently.
    """
    requests = []
    for probe, image_features, expected_ids in zip(
        probes, features, expected.prompt_ids, strict=True
    ):
        prompt_ids = decoder.text.prompt_ids(
            [(segment.text, segment.is_control) for segment in probe.prompt]
        )
        if prompt_ids != expected_ids:
            raise ParityError(
                f"{probe.text!r} is tokenised as {prompt_ids}; the reference has {expected_ids}"
            )
        requests.append(
            SequenceRequest(torch.from_numpy(image_features), prompt_ids, probe.max_new_tokens)
        )
    return requests


def check_answers(
    decoder: Decoder, requests: Sequence[SequenceRequest], expected: ReferenceAnswers
) -> TokenParity:
    """Generate all answers in one batch and compare them.

    Raise `ParityError` if one differs or fails.
    """
    try:
        answers = generate_all(decoder, requests)
    except SequenceError as error:
        raise ParityError(f"the decoder failed on a prompt: {error}") from error
    return compare_tokens([answer.token_ids for answer in answers], expected.answers)


def compare_features(features: NDArray[np.float32], expected: NDArray[np.float32]) -> FeatureParity:
    """Compare image features (B, N, C).

    Raise `ParityError` if they differ by more than rounding or are not finite.
    """
    if features.shape != expected.shape:
        raise ParityError(
            f"image features have shape {features.shape}; the reference has {expected.shape}"
        )
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(expected, axis=-1)
    measured = FeatureParity(
        num_images=len(features),
        min_cosine=float(((features * expected).sum(axis=-1) / norms).min()),
        max_abs_error=float(np.abs(features - expected).max()),
        max_abs_reference=float(np.abs(expected).max()),
    )
    # False for NaN
    is_close = measured.max_abs_error <= MAX_RELATIVE_ERROR * measured.max_abs_reference
    if not (is_close and measured.min_cosine >= MIN_COSINE):
        raise ParityError(f"image features differ from the reference: {measured}")
    return measured


def compare_tokens(
    answers: Sequence[Sequence[int]], expected_answers: Sequence[GreedyAnswer]
) -> TokenParity:
    """Compare answers token by token.

    Raise `ParityError` at a difference that is not a near tie.
    """
    num_near_ties = 0
    for index, (answer, expected) in enumerate(zip(answers, expected_answers, strict=True)):
        step = first_difference(answer, expected.token_ids)
        if step is None:
            continue
        is_near_tie = False
        if step < min(len(answer), len(expected.token_ids)):
            logits = expected.top_logits[step]
            lead = max(logits.values()) - logits.get(answer[step], -math.inf)
            is_near_tie = lead <= NEAR_TIE_LOGITS
        if not is_near_tie:
            raise ParityError(
                f"the answer to prompt {index} has tokens {list(answer)}; "
                f"the reference has {list(expected.token_ids)}; they differ from token {step} on"
            )
        num_near_ties += 1
    return TokenParity(len(answers), sum(map(len, answers)), num_near_ties)


def first_difference(answer: Sequence[object], expected: Sequence[object]) -> int | None:
    """Return the first index at which tokens or texts differ, or None if they are equal."""
    if tuple(answer) == tuple(expected):
        return None
    pairs = zip(answer, expected, strict=False)
    return next(
        (step for step, (one, other) in enumerate(pairs) if one != other),
        min(len(answer), len(expected)),
    )
