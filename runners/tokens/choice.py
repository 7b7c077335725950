"""The choice of the next tokens of a batch: greedy, sampled or by beams, for all rows at once.

One implementation in fixed shapes, which a GPU can capture: conditions are packed into one buffer
and copied in one transfer, `choose` reads no value of the host, and its results are read in one
transfer. `ChoiceKind` names its optional parts: `choose_tokens` chooses eagerly with those that a
row needs; a few kinds are captured (runners/decoder/captured_passes.py).

    rules        a forced token, banned tokens: of a beam after the log-softmax, else before it, as
                 in transformers
    constraint   forbids tokens without renormalising: scores express the model's confidence, not
                 the grammar's width
    choice       the best token, one drawn by temperature and top-p, or the best continuations of a
                 sequence's beams
    next pass    its tokens and the moves of beams, which the host need not know. Beams continue as
                 `BeamSequence` (runners/decoder/sequences.py) decides, unless the search ends

A row's result depends on its own conditions and logits only, whatever the kind. A row with NaN or
infinity has the log-probability NaN; a row without an allowed token, -inf.

Shapes: R rows, V vocabulary, K candidates, W beams of a sequence, B slots.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, islice, product, starmap

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from runners.kv_cache import to_device

Results = NDArray[np.float64]  # (R, 3 + 4 K + 1), see `choose`

MAX_BANNED = 16  # captured choices: tokens of a non-beam row; those of beams are in its mask
MAX_CANDIDATES = 16  # captured choices: all beams of a sequence together
MAX_BEAMS = MAX_CANDIDATES // 2  # each has its own candidate and one for an end token
# Top-p draws among this many tokens; only a flatter distribution needs a sort of the vocabulary.
_USUAL_NUCLEUS = 1024
_NUM_SINGLE = 3  # results of a row by itself
_NUM_OF_CANDIDATE = 4
MAX_RESULTS = _NUM_SINGLE + _NUM_OF_CANDIDATE * MAX_CANDIDATES + 1
# memory of a row per token of the vocabulary during a choice; a test checks it
_BYTES_OF_TOKEN = 32
_DTYPES = {"f": torch.float64, "i": torch.int64, "u": torch.uint8}


@dataclass(frozen=True, slots=True, eq=False)  # arrays have no equality
class RowConditions:
    """The conditions on the next token of a row, and how it is chosen."""

    forced: int | None = None  # the only allowed token, whose log-probability is 0
    banned: Sequence[int] = ()
    # bit mask of the tokens that a constraint allows; None allows all
    allowed: NDArray[np.uint8] | None = None
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    uniform: float = 0.0  # random number of a sampled token, in [0, 1)
    # sum of the beam's log-probabilities, or None for a non-beam row
    beam_score: float | None = None
    num_candidates: int = 1  # total over all beams of a sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of a row; `score` is the sum of the beam's log-probabilities with it."""

    row: int  # index among the sequence's rows
    token_id: int
    logprob: float
    score: float
    # the constraint forbids the token that the row's logits prefer
    is_constrained: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """The choices of each sequence of a pass, in the order of its sequences."""

    choices: list[list[Choice]]
    ahead: Tensor | None = None  # the logits of the next pass, if it has been launched
    redrawn: Sequence[int] = ()  # places of sequences for which `ahead` reads another token


@dataclass(frozen=True, slots=True)
class NextInputs:
    """The inputs of the next pass over slots 0 to B - 1, as far as the host knows them."""

    # row of the running pass that chooses each slot's token, or None: after a prefill, where all
    # beams have the same keys
    rows: Sequence[int | None]
    tokens: Sequence[int]  # token of each slot without such a row; ignored for others
    # of each slot of beams: the slots of its sequence, by row
    parents: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChoiceKind:
    """The optional parts of a choice, each of which takes time; captured ones have all masks."""

    has_sampled: bool
    has_beams: bool
    has_forced: bool = True
    has_banned: bool = True  # banned tokens of non-beam rows
    has_masks: bool = True  # constraints, or banned tokens of beams
    num_candidates: int = MAX_CANDIDATES
    nucleus_size: int = _USUAL_NUCLEUS  # 0: no row is drawn from a nucleus
    has_whole: bool = True  # rows are drawn from the whole vocabulary

    @classmethod
    def captured(cls, conditions: Sequence[RowConditions], inputs: NextInputs) -> "ChoiceKind":
        has_sampled = any(row.temperature > 0 for row in conditions)
        has_beams = any(row.beam_score is not None for row in conditions)
        return cls(has_sampled, has_beams or bool(inputs.parents))

    @classmethod
    def needed(cls, conditions: Sequence[RowConditions], nucleus_size: int) -> "ChoiceKind":
        sampled = [row for row in conditions if row.temperature > 0]
        beams = [row for row in conditions if row.beam_score is not None]
        num_banned = sum(bool(row.banned) for row in conditions)
        num_banned_beams = sum(bool(row.banned) for row in beams)
        has_nucleus = any(row.top_p < 1 for row in sampled)
        return cls(
            has_sampled=bool(sampled),
            has_beams=bool(beams),
            has_forced=any(row.forced is not None for row in conditions),
            has_banned=num_banned > num_banned_beams,
            has_masks=bool(num_banned_beams) or any(row.allowed is not None for row in conditions),
            num_candidates=max((row.num_candidates for row in beams), default=1),
            nucleus_size=nucleus_size if has_nucleus else 0,
            has_whole=any(row.top_p >= 1 for row in sampled),
        )


CAPTURED_KINDS = tuple(starmap(ChoiceKind, product((False, True), repeat=2)))


def choice_bytes(num_tokens: int) -> int:
    """Return the maximum memory of the choice of a row, with its logits and conditions."""
    return num_tokens * _BYTES_OF_TOKEN


def fits(conditions: Iterable[RowConditions]) -> bool:
    """Return True if captured choices have room for these conditions."""
    for row in conditions:
        if row.beam_score is None and len(row.banned) > MAX_BANNED:
            return False
        if row.beam_score is not None and row.num_candidates > MAX_CANDIDATES:
            return False
    return True


class PackedConditions:
    """The conditions on up to `num_rows` rows: written on the host, copied to the device."""

    def __init__(
        self,
        num_rows: int,
        num_tokens: int,
        device: torch.device,
        max_banned: int = MAX_BANNED,
        max_beams: int = MAX_BEAMS,
    ) -> None:
        self.num_tokens = num_tokens
        self._layout = _row_layout(num_tokens, max_banned, max_beams)
        self._rows = np.zeros(num_rows, self._layout)
        memory = self._rows.view(np.uint8).reshape(num_rows, -1)
        self._host = torch.from_numpy(memory)
        self._on_device = self._host
        if device.type != "cpu":
            self._on_device = torch.zeros(memory.shape, dtype=torch.uint8, device=device)
        if device.type == "cuda":
            self._host = self._host.pin_memory()
            self._rows = self._host.numpy().view(self._layout)[:, 0]

    def write(
        self,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        kind: ChoiceKind,
        inputs: NextInputs | None = None,
    ) -> None:
        """Write what a choice of `kind` reads of the first rows; start one transfer to the device.

        `inputs` say what the next pass reads: sequences may have moved or joined since the launch.
        """
        num_rows = len(conditions)
        rows = self._rows[:num_rows]
        if kind.has_sampled:
            for name in ("temperature", "top_p", "uniform"):
                rows[name] = [getattr(row, name) for row in conditions]
        if kind.has_forced:
            rows["forced"] = [-1 if row.forced is None else row.forced for row in conditions]
        if kind.has_banned:
            banned = rows["banned"]
            banned[:] = -1
            for index, row in enumerate(conditions):
                if row.banned and row.forced is None and row.beam_score is None:
                    banned[index] = row.banned[0]  # repeated where there are fewer than others
                    banned[index, : len(row.banned)] = row.banned
        if kind.has_masks:
            rows["allowed"] = 255
            for mask, row in zip(rows["allowed"], conditions, strict=True):
                if row.allowed is not None:
                    num_bytes = min(len(mask), len(row.allowed))
                    mask[:num_bytes] = row.allowed[:num_bytes]
                    mask[num_bytes:] = 0
        if kind.has_beams:
            self._write_beams(conditions, sequences)
        if inputs is not None:
            num_rows = max(num_rows, len(inputs.rows))
            self._write_inputs(inputs)
        if self._on_device is not self._host:
            self._on_device[:num_rows].copy_(self._host[:num_rows], non_blocking=True)

    def _write_beams(
        self, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
    ) -> None:
        """Write the scores and beams of sequences; clear banned tokens of beams in their masks."""
        rows = self._rows[: len(conditions)]
        rows["beam_score"] = [row.beam_score or 0.0 for row in conditions]
        rows["beams"][:] = -1
        for sequence_rows in sequences:
            if conditions[sequence_rows[0]].beam_score is not None:
                for place, index in enumerate(sequence_rows):
                    rows["beams"][index, : len(sequence_rows)] = sequence_rows
                    rows["place"][index] = place
        for mask, row in zip(rows["allowed"], conditions, strict=True):
            if row.banned and row.forced is None and row.beam_score is not None:
                banned = np.asarray(row.banned)
                np.bitwise_and.at(mask, banned >> 3, ~(1 << (banned & 7)).astype(np.uint8))

    def _write_inputs(self, inputs: NextInputs) -> None:
        slots = self._rows[: len(inputs.rows)]
        slots["input_row"] = [-1 if row is None else row for row in inputs.rows]
        slots["input_token"] = inputs.tokens
        self._rows["moved"][: len(inputs.parents)] = list(inputs.parents)
        for slot, parents in inputs.parents.items():
            self._rows["parents"][slot, : len(parents)] = parents

    def field(self, name: str, num_rows: int) -> Tensor:
        """Return a field of the first rows on the device (R, values): a view."""
        assert self._layout.fields is not None
        dtype, offset = self._layout.fields[name][:2]
        column = self._on_device[:num_rows, offset : offset + dtype.itemsize]
        return column.view(_DTYPES[dtype.base.kind])


@lru_cache
def _row_layout(num_tokens: int, max_banned: int, max_beams: int) -> "np.dtype[np.void]":
    num_bytes = 8 * math.ceil(num_tokens / 64)  # rows stay aligned to 8 bytes
    fields = [
        *[(name, np.float64) for name in ("temperature", "top_p", "uniform", "beam_score")],
        ("forced", np.int64),
        ("banned", np.int64, (max_banned,)),
        ("beams", np.int64, (max_beams,)),
        ("place", np.int64),
        ("input_row", np.int64),  # row that chooses the slot's token; -1: none
        ("input_token", np.int64),  # token of a slot without such a row
        ("parents", np.int64, (max_beams,)),
        ("moved", np.int64),
        ("allowed", np.uint8, (num_bytes,)),
    ]
    return np.dtype(fields)


def choose_tokens(
    logits: Tensor, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence: `num_candidates`, best first, if its rows are beams,
    else one for each row.

    `conditions` are those of the rows of `logits` (R, V), `sequences` the rows of each sequence.
    Sampled ones are chosen apart: a draw takes ten times as long as the best token of a row.
    """
    choices: list[list[Choice]] = [[] for _ in sequences]
    for is_sampled in (False, True):
        places: list[int] = []
        for place, rows in enumerate(sequences):
            if (conditions[rows[0]].temperature > 0) == is_sampled:
                places.append(place)
        if places:
            group = [sequences[place] for place in places]
            chosen = _choose_apart(logits, conditions, group)
            for place, sequence_choices in zip(places, chosen, strict=True):
                choices[place] = sequence_choices
    return choices


def _choose_apart(
    logits: Tensor,
    conditions: Sequence[RowConditions],
    sequences: Sequence[Sequence[int]],
    nucleus_size: int = _USUAL_NUCLEUS,
) -> list[list[Choice]]:
    """Choose for `sequences`, from their rows only."""
    rows = list(chain.from_iterable(sequences))
    if rows != [*range(len(logits))]:
        logits = logits[to_device(rows, logits.device)]
    conditions = [conditions[row] for row in rows]
    numbers = iter(range(len(rows)))
    sequences = [list(islice(numbers, len(sequence))) for sequence in sequences]
    num_rows, num_tokens = logits.shape
    max_banned = max(len(row.banned) for row in conditions)
    packed = PackedConditions(
        num_rows, num_tokens, logits.device, max_banned or 1, max(map(len, sequences))
    )
    kind = ChoiceKind.needed(conditions, min(nucleus_size, num_tokens))
    packed.write(conditions, sequences, kind)
    results = choose(packed, logits, kind).cpu().numpy()
    choices = unpack(results, conditions, sequences)
    if kind.has_sampled:
        for place in with_wider_nucleus(results, sequences):
            (choices[place],) = _choose_apart(logits, conditions, [sequences[place]], num_tokens)
    return choices


def choose(conditions: PackedConditions, logits: Tensor, kind: ChoiceKind) -> Tensor:
    """Return the results (R, 3 + 4 K + 1) of the rows of `logits` (R, V); K is 0 without beams.

    They are the row's own token, its log-probability, and the token that its logits prefer (0
    without masks: it costs a pass over the logits); then, each K times, the tokens,
    log-probabilities, scores and beams of its sequence's best candidates; and whether the row's
    nucleus is wider than the usual one. The candidates of a non-beam row have no meaning.
    """
    logprobs, preferred = _allowed_logprobs(conditions, logits, kind)
    token_ids = logprobs.argmax(dim=-1, keepdim=True)  # faster than `max`, which returns both
    is_wider = torch.zeros_like(token_ids, dtype=torch.float64)
    if kind.has_sampled:
        drawn, is_wider = _draw(conditions, logprobs, kind)
        is_sampled = conditions.field("temperature", len(logits)) > 0
        token_ids = torch.where(is_sampled, drawn, token_ids)
    candidates: list[Tensor] = []
    if kind.has_beams:
        candidates = _best_candidates(conditions, logprobs, kind.num_candidates)
    parts = [token_ids, logprobs.gather(1, token_ids), preferred, *candidates, is_wider]
    return torch.cat([part.double() for part in parts], dim=1)


def _allowed_logprobs(
    conditions: PackedConditions, logits: Tensor, kind: ChoiceKind
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (R, V), float32, forbidden tokens at -inf, and the token (R, 1)
    preferred without the mask. No operation makes a tensor of a number: a capture cannot copy it.
    """
    num_rows = len(logits)
    scores = logits.float()
    if kind.has_banned:
        scores = _with_values(scores.clone(), conditions.field("banned", num_rows), -math.inf)
    logprobs = torch.log_softmax(scores, dim=-1)
    if kind.has_forced:
        forced = conditions.field("forced", num_rows)
        logprobs.masked_fill_(forced >= 0, -math.inf)
        _with_values(logprobs, forced, 0.0)
    if not kind.has_masks:
        return logprobs, torch.zeros_like(logprobs[:, :1])
    preferred = logprobs.argmax(dim=-1, keepdim=True)
    # upper bounds: infinity at a set bit, else -inf. Looking them up is faster than `torch.where`
    allowed = conditions.field("allowed", num_rows)
    bounds = functional.embedding(allowed.int(), _bounds_by_byte(allowed.device))  # (R, bytes, 8)
    bounds = bounds.flatten(1)[:, : conditions.num_tokens]
    return torch.minimum(logprobs, bounds, out=logprobs), preferred


@lru_cache
def _bounds_by_byte(device: torch.device) -> Tensor:
    """Return the bounds (256, 8) of eight tokens, by their byte of a bitmask."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.where(torch.from_numpy(bits).bool(), math.inf, -math.inf).to(device)


def _with_values(scores: Tensor, token_ids: Tensor, value: float) -> Tensor:
    """Set the scores (R, V) of tokens (R, N) in place; rows of -1 keep theirs."""
    places = token_ids.clamp(min=0)
    values = scores.gather(1, places).masked_fill_(token_ids >= 0, value)
    return scores.scatter_(1, places, values)


def _draw(
    conditions: PackedConditions, logprobs: Tensor, kind: ChoiceKind
) -> tuple[Tensor, Tensor]:
    """Return a token of each row, and whether its nucleus is wider than usual, (R, 1) each."""
    temperature = conditions.field("temperature", len(logprobs))
    uniform = conditions.field("uniform", len(logprobs))
    warm = temperature.masked_fill(temperature == 0, 1.0)
    probabilities = torch.softmax(logprobs / warm.float(), dim=-1)
    if not kind.nucleus_size:
        drawn = _draw_from_all(probabilities, uniform)
        return drawn, torch.zeros_like(drawn)
    top_p = conditions.field("top_p", len(logprobs))
    drawn, is_wider = _draw_from_nucleus(probabilities, top_p, uniform, kind.nucleus_size)
    if kind.has_whole:
        has_nucleus = top_p < 1
        drawn = torch.where(has_nucleus, drawn, _draw_from_all(probabilities, uniform))
        is_wider = is_wider & has_nucleus
    return drawn, is_wider & (temperature > 0)


def _draw_from_nucleus(
    probabilities: Tensor, top_p: Tensor, uniform: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """Draw among the fewest top tokens whose probabilities sum to `top_p` (R, 1), at least one and
    at most `size`; return the tokens (R, 1) and the rows (R, 1) for which these are too few.

    Source: Holtzman et al., arXiv 1904.09751, section 3.1; the same choice as transformers'
    TopPLogitsWarper.
    """
    num_tokens = probabilities.shape[1]
    values, order = probabilities.topk(min(size, num_tokens))
    is_in_nucleus = values.cumsum(dim=-1, dtype=torch.float64) - values < top_p
    is_in_nucleus[:, 0] = True
    drawn = order.gather(1, _draw_from_all(values * is_in_nucleus, uniform))
    is_wider = values.sum(dim=-1, keepdim=True) < top_p
    return drawn, torch.zeros_like(is_wider) if size >= num_tokens else is_wider


def _draw_from_all(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return where the cumulative sums of weights (R, V) pass `uniform` (R, 1) of the total."""
    sums = weights.cumsum(dim=-1, dtype=torch.float64)
    indices = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)
    return indices.clamp(max=weights.shape[1] - 1)


def _best_candidates(
    conditions: PackedConditions, logprobs: Tensor, num_candidates: int
) -> list[Tensor]:
    """Return tokens, log-probabilities, scores and beams (R, K each) of each row's sequence, by
    score, NaN first, as it fails the sequence; of equal scores, in the order of the beams.
    """
    beam_scores = conditions.field("beam_score", len(logprobs)).float()
    beams = conditions.field("beams", len(logprobs))  # (R, W), padded with -1
    scores, token_ids = (logprobs + beam_scores).topk(min(num_candidates, logprobs.shape[1]))
    rows = beams.clamp(0, len(logprobs) - 1)
    by_beam = scores[rows].masked_fill((beams < 0)[..., None], -math.inf)  # (R, W, K)
    merged, order = by_beam.flatten(1).sort(dim=1, descending=True, stable=True)
    merged, order = merged[:, :num_candidates], order[:, :num_candidates]
    best_ids = token_ids[rows].flatten(1).gather(1, order)
    best_logprobs = logprobs.gather(1, token_ids)[rows].flatten(1).gather(1, order)
    return [best_ids, best_logprobs, merged, order // scores.shape[1]]


def next_inputs(
    conditions: PackedConditions, results: Tensor, kind: ChoiceKind, end_token_ids: Tensor
) -> Tensor:
    """Return the tokens that the first R slots read next, any for slots not written, (1, R); with
    beams also the sources and targets of their moves before that, (3, R).
    """
    num_rows = len(results)
    rows = conditions.field("input_row", num_rows)[:, 0]
    known = conditions.field("input_token", num_rows)[:, 0]
    chosen = rows.clamp(0, num_rows - 1)
    token_ids = results[:, 0]
    if not kind.has_beams:
        return torch.where(rows < 0, known, token_ids.long()[chosen])[None]
    continued, places = _continued(conditions, results, end_token_ids)
    is_beam = conditions.field("beams", num_rows)[:, 0] >= 0
    token_ids = torch.where(is_beam, continued, token_ids)
    tokens = torch.where(rows < 0, known, token_ids.long()[chosen])
    beams = places.long()[chosen].masked_fill(rows < 0, 0)  # (B,)
    sources = conditions.field("parents", num_rows).gather(1, beams[:, None])[:, 0]
    targets = conditions.field("moved", num_rows)[:, 0]
    return torch.stack([tokens, sources[targets.clamp(0, num_rows - 1)], targets])


def _continued(
    conditions: PackedConditions, results: Tensor, end_token_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return token and beam (R,) of the candidate that each row continues: the best that do not
    end.

    Rows without one of their own continue the best, as in `BeamSequence`.
    """
    candidates = results[:, _NUM_SINGLE:-1]
    tokens, _, scores, places = candidates.chunk(_NUM_OF_CANDIDATE, dim=1)  # (R, K)
    is_open = (scores > -math.inf) & (tokens[..., None] != end_token_ids).all(-1)
    order = (~is_open).byte().argsort(dim=1, stable=True)  # open ones first
    place = conditions.field("place", len(results))
    place = place.masked_fill(place >= is_open.sum(1, keepdim=True), 0)
    candidate = order.gather(1, place)
    return tokens.gather(1, candidate)[:, 0], places.gather(1, candidate)[:, 0]


def with_wider_nucleus(results: Results, sequences: Sequence[Sequence[int]]) -> list[int]:
    """Return the places of the sequences with a row that was drawn from too few tokens."""
    places: list[int] = []
    if not results[:, -1].any():
        return places
    is_wider = results[:, -1].tolist()
    for place, rows in enumerate(sequences):
        if any(is_wider[row] for row in rows):
            places.append(place)
    return places


def unpack(
    results: Results, conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    singles = results[:, :_NUM_SINGLE].tolist()
    is_constrained: list[bool] = []  # by row: the constraint, and no rule, forbids the preferred
    for row_conditions, single in zip(conditions, singles, strict=False):  # padding follows
        preferred = int(single[2])
        allowed = row_conditions.allowed
        is_forbidden = False
        if allowed is not None and preferred not in row_conditions.banned:
            place = preferred >> 3
            is_forbidden = place >= len(allowed) or not allowed.item(place) >> (preferred & 7) & 1
        is_constrained.append(is_forbidden)
    choices: list[list[Choice]] = []
    for rows in sequences:
        sequence_choices: list[Choice] = []
        choices.append(sequence_choices)
        first = conditions[rows[0]]
        if first.beam_score is None:
            for row in rows:
                token, logprob, _ = singles[row]
                choice = Choice(0, int(token), logprob, logprob, is_constrained[row])
                sequence_choices.append(choice)
            continue
        candidates = results[rows[0], _NUM_SINGLE:-1].reshape(_NUM_OF_CANDIDATE, -1)
        for token, logprob, score, beam in candidates[:, : first.num_candidates].T.tolist():
            place = int(beam)
            # an impossible candidate may be of a beam that is not there
            flag = place < len(rows) and is_constrained[rows[place]]
            sequence_choices.append(Choice(place, int(token), logprob, score, flag))
    return choices
