"""The choice of the next tokens of a batch: greedy, sampled or by beams, with operations over all
rows at once.

    rules        a forced token, banned tokens: of a beam after the log-softmax, else before it, as
                 in transformers
    constraint   forbids tokens without renormalising: scores express the model's confidence, not
                 the grammar's width
    choice       the best token, one drawn by temperature and top-p, or the best continuations of a
                 sequence's beams

The conditions on all rows are known before the model's step, and the results are read in one copy,
so that the number of operations and of copies between host and device does not depend on the number
of rows. Shapes: R rows, V vocabulary, G sequences with B beams each, K candidates.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.tokens.constraints import token_bounds

# Top-p draws among this many tokens; only a flatter distribution needs a sort of the vocabulary.
_USUAL_NUCLEUS = 1024


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality
class RowConditions:
    """The conditions on the next token of a row, and how it is chosen."""

    forced: int | None = None  # the only allowed token, whose log-probability is 0
    banned: Sequence[int] = ()
    # the tokens that a constraint allows, a bit each; None: all
    allowed: NDArray[np.uint8] | None = None
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    uniform: float = 0.0  # random number of a sampled token, in [0, 1)
    beam_score: float | None = None  # sum of the beam's log-probabilities; None: the row is no beam
    num_candidates: int = 1  # of all beams of a sequence together


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a row; `score` is the sum of the beam's log-probabilities with it."""

    row: int  # of the sequence's rows
    token_id: int
    logprob: float
    score: float


def choose_tokens(
    logits: Tensor, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence: `num_candidates`, best first, if its rows are beams,
    else one for each row.

    `conditions` are those of the rows of `logits` (R, V), `sequences` the rows of each sequence. A
    row with NaN or infinity has the log-probability NaN; a row without an allowed token, -inf.
    """
    logprobs = _allowed_logprobs(logits, conditions)
    groups = _beam_groups(conditions, sequences)
    searched = [
        part for group in groups for part in _best_continuations(logprobs, conditions, group)
    ]
    token_ids, own_logprobs, *found = _read([*_choose_singly(logprobs, conditions), *searched])
    choices = {
        rows[0]: [
            Choice(0, int(token_ids[row]), own_logprobs[row], own_logprobs[row]) for row in rows
        ]
        for rows in sequences
        if conditions[rows[0]].beam_score is None
    }
    for group, columns in zip(groups, zip(*[iter(found)] * 3, strict=True), strict=True):
        size = len(columns[0]) // len(group)
        for index, rows in enumerate(group):
            own = zip(
                *(column[index * size : (index + 1) * size] for column in columns), strict=True
            )
            choices[rows[0]] = [
                Choice(*divmod(int(place), logits.shape[1]), *scores) for place, *scores in own
            ]
    return [choices[rows[0]] for rows in sequences]


def _allowed_logprobs(logits: Tensor, conditions: Sequence[RowConditions]) -> Tensor:
    """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf."""
    singles = [(row, each) for row, each in enumerate(conditions) if each.beam_score is None]
    beams = [(row, each) for row, each in enumerate(conditions) if each.beam_score is not None]
    scores = logits.to(
        torch.float32, copy=any(each.forced is not None or each.banned for _, each in singles)
    )
    _apply_rules(scores, singles)
    logprobs = torch.log_softmax(scores, dim=-1)
    _apply_rules(logprobs, beams)
    _apply_constraints(logprobs, conditions)
    return logprobs


def _apply_rules(scores: Tensor, rows: Iterable[tuple[int, RowConditions]]) -> None:
    """Set banned tokens to -inf, in place; of a row with a forced token, all others, and this
    to 0.
    """
    forced = [(row, each.forced) for row, each in rows if each.forced is not None]
    banned = [
        (row, token_id) for row, each in rows if each.forced is None for token_id in each.banned
    ]
    if forced:
        where, token_ids = torch.tensor(forced, device=scores.device).T
        scores[where] = -math.inf
        scores[where, token_ids] = 0.0
    if banned:
        where, token_ids = torch.tensor(banned, device=scores.device).T
        scores[where, token_ids] = -math.inf


def _apply_constraints(logprobs: Tensor, conditions: Sequence[RowConditions]) -> None:
    """Set the tokens that constraints forbid to -inf, in place."""
    constrained = [
        (row, each.allowed) for row, each in enumerate(conditions) if each.allowed is not None
    ]
    if not constrained:
        return
    rows, allowed = zip(*constrained, strict=True)
    bounds = token_bounds(np.stack(allowed), logprobs.shape[1], logprobs.device)
    if len(rows) == len(logprobs):
        torch.minimum(logprobs, bounds, out=logprobs)
    else:
        where = torch.tensor(rows, device=logprobs.device)
        logprobs[where] = torch.minimum(logprobs[where], bounds)


def _choose_singly(logprobs: Tensor, conditions: Sequence[RowConditions]) -> tuple[Tensor, Tensor]:
    """Return the next token (R,) of each row by itself, greedy or sampled, and its log-probability
    (R,).
    """
    token_ids = logprobs.argmax(dim=-1)  # takes less time than `max`, which returns both
    best = logprobs.gather(1, token_ids[:, None])[:, 0]
    sampled = [(row, each) for row, each in enumerate(conditions) if each.temperature > 0]
    if sampled:
        rows, options = zip(*sampled, strict=True)
        where = torch.tensor(rows, device=logprobs.device)
        own = logprobs[where]
        drawn = _draw(own, options)
        token_ids[where], best[where] = drawn[:, 0], own.gather(1, drawn)[:, 0]
    return token_ids, best


def _draw(logprobs: Tensor, options: Sequence[RowConditions]) -> Tensor:
    """Return a token (R, 1) of each row, drawn by its temperature, top-p and random number."""
    numbers = torch.tensor(
        [(each.temperature, each.top_p, each.uniform) for each in options], dtype=torch.float64
    )
    temperatures, top_p, uniform = numbers.to(logprobs.device)[..., None].unbind(1)  # (R, 1) each
    probabilities = torch.softmax(logprobs / temperatures.float(), dim=-1)
    narrow = [row for row, each in enumerate(options) if each.top_p < 1]
    if len(narrow) == len(options):
        return _draw_from_nucleus(probabilities, top_p, uniform)
    drawn = draw_from_all(probabilities, uniform)
    if narrow:
        where = torch.tensor(narrow, device=logprobs.device)
        drawn[where] = _draw_from_nucleus(probabilities[where], top_p[where], uniform[where])
    return drawn


def _draw_from_nucleus(probabilities: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Like `draw_from_all`, over the fewest most probable tokens whose probabilities sum to `top_p`
    (R, 1).

    Source: Holtzman et al., arXiv 1904.09751, section 3.1; the same choice as transformers'
    TopPLogitsWarper.
    """
    drawn, is_wider = draw_from_usual_nucleus(probabilities, top_p, uniform)
    if probabilities.shape[1] > _USUAL_NUCLEUS and bool(is_wider.any()):
        values, order = probabilities[is_wider].sort(descending=True)
        drawn[is_wider] = order.gather(
            1, draw_from_all(nucleus(values, top_p[is_wider]), uniform[is_wider])
        )
    return drawn


def draw_from_usual_nucleus(
    probabilities: Tensor, top_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the tokens (R, 1) of `_draw_from_nucleus`, and the rows (R,) whose nucleus is wider
    than the usual one.
    """
    values, order = probabilities.topk(min(_USUAL_NUCLEUS, probabilities.shape[1]))
    drawn = order.gather(1, draw_from_all(nucleus(values, top_p), uniform))
    is_wider = values.sum(dim=-1) < top_p[:, 0]
    return drawn, is_wider if values.shape[1] < probabilities.shape[1] else torch.zeros_like(
        is_wider
    )


def nucleus(descending: Tensor, top_p: Tensor) -> Tensor:
    """Return probabilities (R, V) with all but the first that sum to `top_p` (R, 1), and at least
    one, set to 0.
    """
    is_kept = descending.cumsum(dim=-1, dtype=torch.float64) - descending < top_p
    is_kept[:, 0] = True
    return descending * is_kept


def draw_from_all(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return the indices (R, 1) at which the cumulative sums of `weights` (R, V) pass `uniform` (R,
    1) of the total.
    """
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    return torch.searchsorted(sums, uniform * sums[:, -1:], right=True).clamp(
        max=weights.shape[1] - 1
    )


def _beam_groups(
    conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[tuple[int, ...]]]:
    """Return the sequences with beams, by their rows, in groups of as many rows and candidates."""
    groups: dict[tuple[int, int], list[tuple[int, ...]]] = {}
    for rows in sequences:
        first = conditions[rows[0]]
        if first.beam_score is not None:
            groups.setdefault((len(rows), first.num_candidates), []).append(tuple(rows))
    return list(groups.values())


def _best_continuations(
    logprobs: Tensor, conditions: Sequence[RowConditions], group: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best continuations of the sequences of a group, best first.

    They are places (G, K) in a sequence's rows of V tokens, their log-probabilities and the scores
    with them. A place with NaN comes first.
    """
    rows = torch.tensor(group, device=logprobs.device)  # (G, B)
    scores = torch.tensor(
        [[conditions[row].beam_score for row in each] for each in group], device=logprobs.device
    )
    own = logprobs[rows]  # (G, B, V)
    totals = (own + scores[..., None]).flatten(1)
    best, places = totals.topk(min(conditions[group[0][0]].num_candidates, totals.shape[1]))
    return places, own.flatten(1).gather(1, places), best


def _read(tensors: Sequence[Tensor]) -> Iterator[list[float]]:
    """Yield the flat content of each tensor, copied to the host in one transfer."""
    values = iter(torch.cat([tensor.flatten().double() for tensor in tensors]).cpu().tolist())
    return (list(islice(values, tensor.numel())) for tensor in tensors)
