"""The choice of the next tokens of a batch: greedy, sampled or by beams, with operations over all
rows at once.

    rules        a forced token, banned tokens: of a beam after the log-softmax, else before it, as
                 in transformers
    constraint   forbids tokens without renormalising: scores express the model's confidence, not
                 the grammar's width
    choice       the best token, one drawn by temperature and top-p, or the best continuations of a
                 sequence's beams

The conditions on all rows are known before the model's step, and the results are read in one copy:
the number of operations and of copies between host and device does not depend on the number of
rows. Draws, `best_candidates` and `unpack` also serve runners/cuda_graphs/choice.py, which masks,
draws and merges every row in fixed shapes; on a CPU that takes 2 to 20 times as long. Shapes: R
rows, V vocabulary, G sequences with W beams each, K candidates.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.staging import to_device
from runners.tokens.conditions import Choice, RowConditions
from runners.tokens.constraints import token_bounds

# Top-p draws among this many tokens; only a flatter distribution needs a sort of the vocabulary.
_USUAL_NUCLEUS = 1024
NUM_SINGLE = 3  # results of a row by itself: token, log-probability, the token preferred by logits
NUM_OF_CANDIDATE = 4  # results: token, log-probability, score, the beam that it extends

Results = NDArray[np.float64]


def choose_tokens(
    logits: Tensor, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence: `num_candidates`, best first, if its rows are beams,
    else one for each row.

    `conditions` are those of the rows of `logits` (R, V), `sequences` the rows of each sequence. A
    row with NaN or infinity has the log-probability NaN; a row without an allowed token, -inf.
    """
    logprobs, preferred = _allowed_logprobs(logits, conditions)
    singles = torch.cat([_choose_singly(logprobs, conditions), preferred.double()], dim=1)
    groups = beam_rows(conditions, sequences)
    if not groups:
        return unpack(singles.cpu().numpy(), np.empty(0), conditions, sequences)
    candidates = _search(logprobs, conditions, groups)
    both = torch.cat([singles.flatten(), candidates.flatten()]).cpu().numpy()
    own, searched = np.split(both, [singles.numel()])
    searched = searched.reshape(len(groups), -1)
    return unpack(own.reshape(-1, NUM_SINGLE), searched, conditions, sequences)


def beam_rows(
    conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[Sequence[int]]:
    """Return the rows of each sequence with beams."""
    return [rows for rows in sequences if conditions[rows[0]].beam_score is not None]


def unpack(
    singles: Results,
    candidates: Results,
    conditions: Sequence[RowConditions],
    sequences: Sequence[Sequence[int]],
) -> list[list[Choice]]:
    """Return the choices of each sequence.

    `singles` (R, 3) are the results of all rows, `candidates` (G, 4 K) those of the sequences with
    beams.
    """
    tokens: list[Any] = singles.tolist()
    flags = [
        is_constrained(each, int(preferred))
        for each, (*_, preferred) in zip(conditions, tokens, strict=False)
    ]
    searched = iter(candidates)
    choices: list[list[Choice]] = []
    for rows in sequences:
        own: list[Choice] = []
        choices.append(own)
        first = conditions[rows[0]]
        if first.beam_score is None:
            for row in rows:
                token, logprob, _ = tokens[row]
                own.append(Choice(0, int(token), logprob, logprob, flags[row]))
            continue
        columns = next(searched).reshape(NUM_OF_CANDIDATE, -1)[:, : first.num_candidates]
        for token, logprob, score, beam in columns.T.tolist():
            place = int(beam)
            # an impossible candidate may be of a beam that is not there
            flag = place < len(rows) and flags[rows[place]]
            own.append(Choice(place, int(token), logprob, score, flag))
    return choices


def is_constrained(conditions: RowConditions, preferred: int) -> bool:
    """Return True if the constraint, and no rule, forbids the token that the logits prefer."""
    allowed = conditions.allowed
    if allowed is None or preferred in conditions.banned:
        return False
    place = preferred >> 3
    return place >= len(allowed) or not allowed[place] >> (preferred & 7) & 1


def _allowed_logprobs(logits: Tensor, conditions: Sequence[RowConditions]) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf, and the token
    (R, 1) preferred without constraint and without the rules of beams.

    Without any constraint the latter is 0: it costs a pass over the logits.
    """
    singles = [(row, each) for row, each in enumerate(conditions) if each.beam_score is None]
    beams = [(row, each) for row, each in enumerate(conditions) if each.beam_score is not None]
    has_rules = any(each.forced is not None or each.banned for _, each in singles)
    scores = logits.to(torch.float32, copy=has_rules)
    _apply_rules(scores, singles)
    logprobs = torch.log_softmax(scores, dim=-1)
    if any(each.allowed is not None for each in conditions):
        preferred = logprobs.argmax(dim=-1, keepdim=True)
    else:
        preferred = torch.zeros(len(logits), 1, dtype=torch.int64, device=logits.device)
    _apply_rules(logprobs, beams)
    _apply_constraints(logprobs, conditions)
    return logprobs, preferred


def _apply_rules(scores: Tensor, rows: Iterable[tuple[int, RowConditions]]) -> None:
    """Set banned tokens to -inf in place; a forced token gets 0, all others of its row -inf."""
    forced: list[tuple[int, int]] = []
    banned: list[tuple[int, int]] = []
    for row, each in rows:
        if each.forced is not None:
            forced.append((row, each.forced))
        else:
            banned += [(row, token_id) for token_id in each.banned]
    if forced:
        where, token_ids = to_device(forced, scores.device).T
        scores[where] = -math.inf
        scores[where, token_ids] = 0.0
    if banned:
        where, token_ids = to_device(banned, scores.device).T
        scores[where, token_ids] = -math.inf


def _apply_constraints(logprobs: Tensor, conditions: Sequence[RowConditions]) -> None:
    """Set the tokens that constraints forbid to -inf, in place."""
    masks = {row: each.allowed for row, each in enumerate(conditions) if each.allowed is not None}
    if not masks:
        return
    rows = list(masks)
    bounds = token_bounds(np.stack(list(masks.values())), logprobs.shape[1], logprobs.device)
    if len(rows) == len(logprobs):
        torch.minimum(logprobs, bounds, out=logprobs)
    else:
        where = to_device(rows, logprobs.device)
        logprobs[where] = torch.minimum(logprobs[where], bounds)


def _choose_singly(logprobs: Tensor, conditions: Sequence[RowConditions]) -> Tensor:
    """Return each row's next token, greedy or sampled, and its log-probability (R, 2)."""
    token_ids = logprobs.argmax(dim=-1, keepdim=True)  # faster than `max`, which returns both
    sampled = [(row, each) for row, each in enumerate(conditions) if each.temperature > 0]
    if sampled:
        rows, options = zip(*sampled, strict=True)
        where = to_device(rows, logprobs.device)
        token_ids[where] = _draw(logprobs[where], options)
    return torch.cat([token_ids.double(), logprobs.gather(1, token_ids).double()], dim=1)


def _draw(logprobs: Tensor, options: Sequence[RowConditions]) -> Tensor:
    """Return a token (R, 1) of each row, drawn by its temperature, top-p and random number."""
    numbers = to_device(
        [(each.temperature, each.top_p, each.uniform) for each in options],
        logprobs.device,
        torch.float64,
    )
    temperatures, top_p, uniform = numbers[..., None].unbind(1)  # (R, 1) each
    probabilities = torch.softmax(logprobs / temperatures.float(), dim=-1)
    narrow = [row for row, each in enumerate(options) if each.top_p < 1]
    if len(narrow) == len(options):
        return _draw_from_nucleus(probabilities, top_p, uniform)
    drawn = draw_from_all(probabilities, uniform)
    if narrow:
        where = to_device(narrow, logprobs.device)
        drawn[where] = _draw_from_nucleus(probabilities[where], top_p[where], uniform[where])
    return drawn


def _draw_from_nucleus(probabilities: Tensor, top_p: Tensor, uniform: Tensor) -> Tensor:
    """Like `draw_from_all`, over the fewest top tokens whose probabilities sum to `top_p` (R, 1).

    Source: Holtzman et al., arXiv 1904.09751, section 3.1; the same choice as transformers'
    TopPLogitsWarper.
    """
    drawn, is_wider = draw_from_usual_nucleus(probabilities, top_p, uniform)
    if probabilities.shape[1] > _USUAL_NUCLEUS and bool(is_wider.any()):
        values, order = probabilities[is_wider].sort(descending=True)
        places = draw_from_all(nucleus(values, top_p[is_wider]), uniform[is_wider])
        drawn[is_wider] = order.gather(1, places)
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
    has_all = values.shape[1] == probabilities.shape[1]
    return drawn, torch.zeros_like(is_wider) if has_all else is_wider


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
    indices = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    return indices.clamp(max=weights.shape[1] - 1)


def _search(
    logprobs: Tensor, conditions: Sequence[RowConditions], groups: Sequence[Sequence[int]]
) -> Tensor:
    """Return the best candidates (G, 4 K) of sequences with beams."""
    rows = list(chain.from_iterable(groups))
    width = max(map(len, groups))
    places = iter(range(len(rows)))  # places among the rows of beams
    padded = [[*islice(places, len(group)), *[-1] * (width - len(group))] for group in groups]
    beams = to_device(padded, logprobs.device)
    scores = to_device([[conditions[row].beam_score] for row in rows], logprobs.device)
    own = logprobs[to_device(rows, logprobs.device)]
    num_candidates = max(conditions[group[0]].num_candidates for group in groups)
    found = best_candidates(own, scores, beams, num_candidates)
    return torch.cat([each.double() for each in found], dim=1)


def best_candidates(
    logprobs: Tensor, beam_scores: Tensor, beams: Tensor, num_candidates: int
) -> list[Tensor]:
    """Return tokens, log-probabilities, scores and beams (G, K each) of the best candidates.

    `beam_scores` are (R, 1), `beams` (G, W) the rows of each sequence, padded with -1. The order is
    that of scores, NaN first, as it fails the sequence; of equal scores, that of the beams.
    """
    scores, token_ids = (logprobs + beam_scores).topk(min(num_candidates, logprobs.shape[1]))
    rows = beams.clamp(0, len(logprobs) - 1)
    by_beam = scores[rows].masked_fill((beams < 0)[..., None], -math.inf)  # (G, W, K)
    merged, order = by_beam.flatten(1).sort(dim=1, descending=True, stable=True)
    merged, order = merged[:, :num_candidates], order[:, :num_candidates]
    own = (token_ids, logprobs.gather(1, token_ids))
    best_ids, best_logprobs = (each[rows].flatten(1).gather(1, order) for each in own)
    return [best_ids, best_logprobs, merged, order // scores.shape[1]]
