"""The choice of tokens in fixed shapes: operations that a GPU captures once and replays, with
results read in one copy.

    choose         rules, masks and choice for all rows, whatever their conditions; no value is read
    next_tokens    the inputs of the next pass, which the host need not know
    next_moves     of beams: the slots that continue others
    unpack_rows    the choices of each sequence, of the results read in one transfer

Tokens and log-probabilities are those of `choose_tokens` (runners/tokens/token_choice.py), which
serves what does not fit: more banned tokens or candidates than there is room for, and a nucleus
wider than the usual one. Beams continue as `BeamSequence` (runners/decoder/beams.py) decides from
the same candidates, unless it ends. Shapes: R rows, V vocabulary, K candidates, W beams of a
sequence, B slots.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product, starmap

import numpy as np
import torch
from torch import Tensor

from runners.cuda_graphs.packed_conditions import MAX_CANDIDATES, PackedConditions
from runners.tokens.conditions import Choice, NextInputs, RowConditions
from runners.tokens.constraints import packed_bounds
from runners.tokens.token_choice import (
    NUM_OF_CANDIDATE,
    NUM_SINGLE,
    Results,
    beam_rows,
    best_candidates,
    draw_from_all,
    draw_from_usual_nucleus,
    unpack,
)

# results of a row: its tokens, its candidates, whether its nucleus is wider than the usual one
MAX_RESULTS = NUM_SINGLE + NUM_OF_CANDIDATE * MAX_CANDIDATES + 1
# memory of a row per token of the vocabulary during a choice; a test checks it
_BYTES_OF_TOKEN = 32


@dataclass(frozen=True, slots=True)
class ChoiceKind:
    """The optional parts of a captured choice: each takes time, and most steps need neither."""

    has_sampled: bool
    has_beams: bool

    @classmethod
    def of(cls, conditions: Sequence[RowConditions], inputs: NextInputs) -> "ChoiceKind":
        has_beams = any(each.beam_score is not None for each in conditions)
        return cls(
            has_sampled=any(each.temperature > 0 for each in conditions),
            has_beams=has_beams or bool(inputs.parents),
        )


KINDS = tuple(starmap(ChoiceKind, product((False, True), repeat=2)))


def choice_bytes(num_tokens: int) -> int:
    """Return the maximum memory of the choice of one row, including its logits and conditions."""
    return num_tokens * _BYTES_OF_TOKEN


def choose(conditions: PackedConditions, logits: Tensor, kind: ChoiceKind) -> Tensor:
    """Return the results (R, 3 + 4 K + 1) of the rows of `logits` (R, V); K is 0 without beams.

    They are the row's own token, its log-probability, and the token that its logits prefer; then,
    each K times, the tokens, log-probabilities, scores and beams of its sequence's best candidates;
    and whether the row's nucleus is wider than the usual one. The candidates of a non-beam row have
    no meaning.
    """
    logprobs, preferred = _allowed_logprobs(conditions, logits)
    token_ids = logprobs.argmax(dim=-1, keepdim=True)
    is_wider = torch.zeros_like(token_ids)
    if kind.has_sampled:
        drawn, is_wider = _draw(conditions, logprobs)
        is_sampled = conditions.field("temperature", len(logits)) > 0
        token_ids = torch.where(is_sampled, drawn, token_ids)
    candidates: list[Tensor] = []
    if kind.has_beams:
        scores = conditions.field("beam_score", len(logits)).float()
        beams = conditions.field("beams", len(logits))  # (R, W)
        candidates = best_candidates(logprobs, scores, beams, MAX_CANDIDATES)
    parts = [token_ids, logprobs.gather(1, token_ids), preferred, *candidates, is_wider]
    return torch.cat([part.double() for part in parts], dim=1)


def _allowed_logprobs(conditions: PackedConditions, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf, and the token
    (R, 1) preferred without the mask.

    Only operations that take numbers as arguments: a number that torch makes a tensor of would be
    copied to the device, which a capture does not permit.
    """
    banned = conditions.field("banned", len(logits))
    forced = conditions.field("forced", len(logits))
    bounds = torch.full_like(banned, math.inf, dtype=torch.float32)
    bounds = bounds.masked_fill(banned >= 0, -math.inf)
    scores = logits.to(torch.float32, copy=True)
    scores = scores.scatter_reduce_(1, banned.clamp(min=0), bounds, "amin")
    logprobs = torch.log_softmax(scores, dim=-1)
    is_other = torch.arange(logits.shape[1], device=logits.device) != forced  # (R, V)
    only_forced = torch.zeros_like(logprobs).masked_fill_(is_other, -math.inf)
    logprobs = torch.where(forced >= 0, only_forced, logprobs)
    preferred = logprobs.argmax(dim=-1, keepdim=True)
    mask = packed_bounds(conditions.field("allowed", len(logits)), conditions.num_tokens)
    return torch.minimum(logprobs, mask), preferred


def _draw(conditions: PackedConditions, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token of each row; return it and whether its nucleus is wider than usual, (R, 1)."""
    names = ("temperature", "top_p", "uniform")
    temperature, top_p, uniform = (conditions.field(name, len(logprobs)) for name in names)
    warm = temperature.masked_fill(temperature == 0, 1.0)
    probabilities = torch.softmax(logprobs / warm.float(), dim=-1)
    has_nucleus = top_p < 1
    narrow, is_wider = draw_from_usual_nucleus(probabilities, top_p, uniform)
    drawn = torch.where(has_nucleus, narrow, draw_from_all(probabilities, uniform))
    return drawn, is_wider[:, None] & has_nucleus & (temperature > 0)


def next_tokens(
    conditions: PackedConditions, results: Tensor, kind: ChoiceKind, end_token_ids: Tensor
) -> Tensor:
    """Return the tokens (R,) that the first R slots read in the next pass; slots beyond those
    written get any.
    """
    chosen = results[:, 0]
    if kind.has_beams:
        tokens, _ = _continued(conditions, results, end_token_ids)
        is_beam = conditions.field("beams", len(results))[:, 0] >= 0
        chosen = torch.where(is_beam, tokens, chosen)
    rows = conditions.field("input_row", len(results))[:, 0]
    known = conditions.field("input_token", len(results))[:, 0]
    return torch.where(rows < 0, known, chosen.long()[rows.clamp(0, len(results) - 1)])


def next_moves(conditions: PackedConditions, results: Tensor, end_token_ids: Tensor) -> Tensor:
    """Return the sources and targets (2, R) of the slots of beams before the next pass."""
    num_rows = len(results)
    _, places = _continued(conditions, results, end_token_ids)
    rows = conditions.field("input_row", num_rows)[:, 0]
    own = places.long()[rows.clamp(0, num_rows - 1)].masked_fill(rows < 0, 0)  # (B,)
    sources = conditions.field("parents", num_rows).gather(1, own[:, None])[:, 0]
    targets = conditions.field("moved", num_rows)[:, 0]
    return torch.stack([sources[targets.clamp(0, num_rows - 1)], targets])


def _continued(
    conditions: PackedConditions, results: Tensor, end_token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return token and beam (R,) of the candidate that each row continues: the best that are
    possible and do not end.

    Rows without a candidate of their own continue the best one, as in `BeamSequence`.
    """
    candidates = results[:, NUM_SINGLE:-1]
    tokens, _, scores, places = candidates.chunk(NUM_OF_CANDIDATE, dim=1)  # (R, K)
    is_open = (scores > -math.inf) & (tokens[..., None] != end_token_ids).all(-1)
    order = (~is_open).byte().argsort(dim=1, stable=True)  # open ones first
    place = conditions.field("place", len(results))
    place = place.masked_fill(place >= is_open.sum(1, keepdim=True), 0)
    kept = order.gather(1, place)
    return tokens.gather(1, kept)[:, 0], places.gather(1, kept)[:, 0]


def has_wider_nucleus(results: Results, rows: Sequence[int]) -> bool:
    """Return True if one of `rows` was drawn from too few tokens."""
    return any(results[row, -1] for row in rows)


def unpack_rows(
    results: Results, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence from the results of all rows."""
    firsts = [rows[0] for rows in beam_rows(conditions, sequences)]
    candidates = results[np.array(firsts, dtype=int), NUM_SINGLE:-1]
    return unpack(results[:, :NUM_SINGLE], candidates, conditions, sequences)
