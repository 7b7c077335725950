"""The choice of tokens in fixed shapes: operations that a GPU records once and repeats, with
results read in one copy.

    choose         rules, masks and choice for all rows, whatever their conditions; no value is read
    next_tokens    the inputs of the next pass, which the host need not know
    next_moves     of beams: the slots that continue others
    unpack         the choices of each sequence, of the results read in one transfer

Tokens and log-probabilities are those of `choose_tokens` (runners/tokens/token_choice.py), which
serves what does not fit: more banned tokens or candidates than there is room for, and a nucleus
wider than the usual one. Beams continue as `BeamSequence` (runners/decoder/beams.py) decides from
the same candidates, unless it ends. Shapes: R rows, V vocabulary, K candidates, W beams of a
sequence, B slots.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.cuda_graphs.conditions import MAX_CANDIDATES, PackedConditions
from runners.tokens.constraints import packed_bounds
from runners.tokens.token_choice import (
    Choice,
    RowConditions,
    draw_from_all,
    draw_from_usual_nucleus,
)

# results of a row by itself: token, log-probability, whether its nucleus is wider than the usual
# one
_NUM_SINGLE = 3
_NUM_OF_CANDIDATE = 4  # results: token, log-probability, score, the beam that it extends
MAX_RESULTS = _NUM_SINGLE + _NUM_OF_CANDIDATE * MAX_CANDIDATES  # of a row
# of a row, for each token of the vocabulary, while tokens are chosen; a test holds it
_BYTES_OF_TOKEN = 32

Results = NDArray[np.float64]  # (R, MAX_RESULTS or less)


@dataclass(frozen=True, slots=True)
class ChoiceKind:
    """The optional parts of a recorded choice: each takes time, and most steps need neither."""

    has_sampled: bool
    has_beams: bool

    @classmethod
    def of(cls, conditions: Iterable[RowConditions], has_moves: bool = False) -> "ChoiceKind":
        """Return the kind that rows need, and slots of beams among the next inputs if
        `has_moves`.
        """
        pairs = [(each.temperature > 0, each.beam_score is not None) for each in conditions]
        return cls(
            any(sampled for sampled, _ in pairs), has_moves or any(beam for _, beam in pairs)
        )


KINDS = tuple(ChoiceKind(sampled, beams) for sampled in (False, True) for beams in (False, True))


def choice_bytes(num_tokens: int) -> int:
    """Return the memory that the choice of one row takes at most, its logits and conditions
    included.
    """
    return num_tokens * _BYTES_OF_TOKEN


def choose(conditions: PackedConditions, logits: Tensor, kind: ChoiceKind) -> Tensor:
    """Return the results (R, 3 + 4 K) of the rows of `logits` (R, V); K is 0 without beams.

    They are the row's own token, its log-probability and whether its nucleus is wider than the
    usual one; then, each K times, what its sequence's best candidates are: tokens,
    log-probabilities, scores, and the places of their beams.
    """
    logprobs = _allowed_logprobs(conditions, logits)
    token_ids = logprobs.argmax(dim=-1, keepdim=True)
    is_wider = torch.zeros_like(token_ids)
    if kind.has_sampled:
        drawn, is_wider = _draw(conditions, logprobs)
        is_sampled = conditions.field("temperature", len(logits)) > 0
        token_ids = torch.where(is_sampled, drawn, token_ids)
    parts = [token_ids, logprobs.gather(1, token_ids), is_wider]
    if kind.has_beams:
        parts += _best_candidates(conditions, logprobs)
    return torch.cat([part.double() for part in parts], dim=1)


def _allowed_logprobs(conditions: PackedConditions, logits: Tensor) -> Tensor:
    """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf.

    Only operations that take numbers as arguments: a number that torch makes a tensor of would be
    copied to the device, which a capture does not permit.
    """
    banned = conditions.field("banned", len(logits))
    forced = conditions.field("forced", len(logits))
    bounds = torch.full_like(banned, math.inf, dtype=torch.float32).masked_fill(
        banned >= 0, -math.inf
    )
    scores = logits.to(torch.float32, copy=True).scatter_reduce_(
        1, banned.clamp(min=0), bounds, "amin"
    )
    logprobs = torch.log_softmax(scores, dim=-1)
    is_other = torch.arange(logits.shape[1], device=logits.device) != forced  # (R, V)
    only_forced = torch.zeros_like(logprobs).masked_fill_(is_other, -math.inf)
    logprobs = torch.where(forced >= 0, only_forced, logprobs)
    return torch.minimum(
        logprobs, packed_bounds(conditions.field("allowed", len(logits)), conditions.num_tokens)
    )


def _draw(conditions: PackedConditions, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Return a token (R, 1) drawn for each row, and whether its nucleus is wider than the usual one
    (R, 1).
    """
    names = ("temperature", "top_p", "uniform")
    temperature, top_p, uniform = (conditions.field(name, len(logprobs)) for name in names)
    warm = temperature.masked_fill(temperature == 0, 1.0)
    probabilities = torch.softmax(logprobs / warm.float(), dim=-1)
    has_nucleus = top_p < 1
    narrow, is_wider = draw_from_usual_nucleus(probabilities, top_p, uniform)
    drawn = torch.where(has_nucleus, narrow, draw_from_all(probabilities, uniform))
    return drawn, is_wider[:, None] & has_nucleus & (temperature > 0)


def _best_candidates(conditions: PackedConditions, logprobs: Tensor) -> list[Tensor]:
    """Return tokens, log-probabilities, scores and beams (R, K each) of the best candidates of each
    row's sequence.

    The order is that of scores, NaN first, as it fails the sequence; of equal scores, that of the
    beams. Rows that are no beams get any.
    """
    num_rows = len(logprobs)
    totals = logprobs + conditions.field("beam_score", num_rows).float()
    scores, token_ids = totals.topk(min(MAX_CANDIDATES, logprobs.shape[1]))  # of each row by itself
    beams = conditions.field("beams", num_rows)  # (R, W)
    rows = beams.clamp(0, num_rows - 1)
    by_beam = scores[rows].masked_fill((beams < 0)[..., None], -math.inf)  # (R, W, K)
    merged, order = by_beam.flatten(1).sort(dim=1, descending=True, stable=True)
    merged, order = merged[:, : scores.shape[1]], order[:, : scores.shape[1]]
    own = (token_ids, logprobs.gather(1, token_ids))
    best_ids, best_logprobs = (each[rows].flatten(1).gather(1, order) for each in own)
    return [best_ids, best_logprobs, merged, order // scores.shape[1]]


def next_tokens(
    conditions: PackedConditions, results: Tensor, kind: ChoiceKind, end_token_ids: Tensor
) -> Tensor:
    """Return the tokens (R,) that the first R slots read in the next pass; slots beyond those
    written, any.
    """
    chosen = results[:, 0]
    if kind.has_beams:
        tokens, _ = _continued(conditions, results, end_token_ids)
        is_beam = conditions.field("beams", len(results))[:, 0] >= 0
        chosen = torch.where(is_beam, tokens, chosen)
    inputs = conditions.field("input", len(results))[:, 0]
    return torch.where(inputs < 0, ~inputs, chosen.long()[inputs.clamp(0, len(results) - 1)])


def next_moves(conditions: PackedConditions, results: Tensor, end_token_ids: Tensor) -> Tensor:
    """Return the sources and targets (2, R) of the slots of beams before the next pass."""
    num_rows = len(results)
    _, places = _continued(conditions, results, end_token_ids)
    inputs = conditions.field("input", num_rows)[:, 0]
    own = places.long()[inputs.clamp(0, num_rows - 1)].masked_fill(inputs < 0, 0)  # (B,)
    sources = conditions.field("parents", num_rows).gather(1, own[:, None])[:, 0]
    targets = conditions.field("moved", num_rows)[:, 0]
    return torch.stack([sources[targets.clamp(0, num_rows - 1)], targets])


def _continued(
    conditions: PackedConditions, results: Tensor, end_token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return token and beam (R,) of the candidate that each row continues: the best that are
    possible and no end.

    Rows without a candidate of their own continue the best one, as in `BeamSequence`.
    """
    tokens, _, scores, places = results[:, _NUM_SINGLE:].chunk(_NUM_OF_CANDIDATE, dim=1)  # (R, K)
    is_open = (scores > -math.inf) & (tokens[..., None] != end_token_ids).all(-1)
    order = (~is_open).byte().argsort(dim=1, stable=True)  # open ones first
    place = conditions.field("place", len(results))
    place = place.masked_fill(place >= is_open.sum(1, keepdim=True), 0)
    kept = order.gather(1, place)
    return tokens.gather(1, kept)[:, 0], places.gather(1, kept)[:, 0]


def has_wider_nucleus(results: Results, rows: Sequence[int]) -> bool:
    """Return True if one of `rows` was drawn from too few tokens."""
    return any(results[row][_NUM_SINGLE - 1] for row in rows)


def unpack(
    results: Results, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence, as `choose_tokens` does, from the results of all
    rows.
    """
    singly: list[Any] = results[:, :_NUM_SINGLE].tolist()
    choices: list[list[Choice]] = []
    for rows in sequences:
        first = conditions[rows[0]]
        if first.beam_score is None:
            choices.append(
                [Choice(0, int(singly[row][0]), singly[row][1], singly[row][1]) for row in rows]
            )
        else:
            columns = results[rows[0], _NUM_SINGLE:].reshape(_NUM_OF_CANDIDATE, -1)[
                :, : first.num_candidates
            ]
            choices.append(
                [
                    Choice(int(place), int(token_id), *scores)
                    for token_id, *scores, place in columns.T.tolist()
                ]
            )
    return choices
