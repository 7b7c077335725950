"""The choice of tokens in fixed shapes: operations that a GPU records once and repeats, with results read in one copy.

    pack      the conditions on all rows go into one host buffer with a field for each, copied in one transfer
    choose    rules, masks and choice for all rows, whatever their conditions; no value is read
    unpack    the results of all rows, read in one transfer; the candidates of a sequence's beams are merged here

The chosen tokens become the inputs of the next pass without the host, which writes with the conditions only where each
slot's token comes from: the sequences of a pass may have moved to other slots since, and others have no row in it.
Tokens and log-probabilities are those of `choose_tokens` (runners/tokens/token_choice.py), which serves what does not
fit: more banned tokens or candidates than there is room for, and a nucleus wider than the usual one.
Shapes: R rows, V vocabulary, K candidates, B slots.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.tokens.constraints import packed_bounds
from runners.tokens.token_choice import Choice, RowConditions, draw_from_all, draw_from_usual_nucleus

MAX_BANNED = 16  # tokens of a row that is no beam: those of beams are in its mask
MAX_CANDIDATES = 16  # of a sequence's beams: up to eight beams with one end token
_NUM_SINGLE = 3  # results of a row by itself: token, log-probability, whether its nucleus is wider than the usual one
MAX_RESULTS = _NUM_SINGLE + 3 * MAX_CANDIDATES  # of a row
_DTYPES = {"f": torch.float64, "i": torch.int64, "u": torch.uint8}
_BYTES_OF_TOKEN = 32  # of a row, for each token of the vocabulary, while tokens are chosen; a test holds it


@dataclass(frozen=True, slots=True)
class ChoiceKind:
    """The optional parts of a recorded choice: each takes time, and most steps need neither."""

    has_sampled: bool
    has_beams: bool

    @classmethod
    def of(cls, conditions: Iterable[RowConditions]) -> "ChoiceKind":
        """Return the kind that rows need."""
        pairs = [(each.temperature > 0, each.beam_score is not None) for each in conditions]
        return cls(any(sampled for sampled, _ in pairs), any(beam for _, beam in pairs))


KINDS = tuple(ChoiceKind(sampled, beams) for sampled in (False, True) for beams in (False, True))


def fits(conditions: Iterable[RowConditions]) -> bool:
    """Return True if there is room for the conditions."""
    return all(
        len(each.banned) <= MAX_BANNED if each.beam_score is None else each.num_candidates <= MAX_CANDIDATES
        for each in conditions
    )


def choice_bytes(num_tokens: int) -> int:
    """Return the memory that the choice of one row takes at most, its logits and conditions included."""
    return num_tokens * _BYTES_OF_TOKEN


class PackedConditions:
    """The conditions on up to `num_rows` rows: on the host, where they are written, and on the device."""

    def __init__(self, num_rows: int, num_tokens: int, device: torch.device) -> None:
        self._num_tokens = num_tokens
        numbers = [(name, np.float64) for name in ("temperature", "top_p", "uniform", "beam_score")]
        tokens = [("forced", np.int64), ("banned", np.int64, (MAX_BANNED,)), ("input", np.int64)]
        num_bytes = 8 * math.ceil(num_tokens / 64)  # rows stay aligned to 8 bytes
        self._layout = np.dtype([*numbers, *tokens, ("allowed", np.uint8, (num_bytes,))])
        host = torch.zeros(num_rows, self._layout.itemsize, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._host, self._rows = host, host.numpy().view(self._layout)[:, 0]
        self._on_device = torch.zeros(host.shape, dtype=torch.uint8, device=device)

    @property
    def num_bytes(self) -> int:
        """The memory of the device that the conditions take."""
        return self._on_device.nbytes

    def write(self, conditions: Sequence[RowConditions], inputs: Sequence[int] = ()) -> None:
        """Write the conditions of the first rows and copy them to the device in one transfer, without waiting.

        `inputs` are those of slots 0 to B - 1 in the next pass: the row that chooses the token, or ~token.
        """
        rows = self._rows[: len(conditions)]
        for name in ("temperature", "top_p", "uniform"):
            rows[name] = [getattr(each, name) for each in conditions]
        rows["beam_score"] = [each.beam_score or 0.0 for each in conditions]
        rows["forced"] = [-1 if each.forced is None else each.forced for each in conditions]
        rows["banned"] = -1
        for row, each in zip(rows, conditions, strict=True):
            self._write_tokens(row, each)
        self._rows["input"][: len(inputs)] = inputs
        num_rows = max(len(conditions), len(inputs))
        self._on_device[:num_rows].copy_(self._host[:num_rows], non_blocking=True)

    def _write_tokens(self, row: "np.void", conditions: RowConditions) -> None:
        """Write the banned and the allowed tokens; those that a beam's rules ban are not allowed."""
        mask: NDArray[np.uint8] = row["allowed"]
        if conditions.allowed is None:
            mask[:] = 255
        else:
            num_bytes = min(len(mask), len(conditions.allowed))
            mask[:num_bytes], mask[num_bytes:] = conditions.allowed[:num_bytes], 0
        if not conditions.banned or conditions.forced is not None:
            return
        if conditions.beam_score is None:
            row["banned"][: len(conditions.banned)] = conditions.banned
        else:
            banned = np.asarray(conditions.banned)
            np.bitwise_and.at(mask, banned >> 3, ~(1 << (banned & 7)).astype(np.uint8))

    def field(self, name: str, num_rows: int) -> Tensor:
        """Return a field of the first rows on the device (R, values): a view."""
        assert self._layout.fields is not None
        dtype, offset = self._layout.fields[name][:2]
        own = self._on_device[:num_rows, offset : offset + dtype.itemsize]
        return own.view(_DTYPES[dtype.base.kind])

    def choose(self, logits: Tensor, kind: ChoiceKind) -> Tensor:
        """Return the results (R, 3 + 3 K) of the rows of `logits` (R, V); K is 0 without beams.

        They are the row's own token, its log-probability and whether its nucleus is wider than the usual one; then the
        tokens of its candidates, their log-probabilities, and the beam's scores with them.
        """
        logprobs = self._allowed_logprobs(logits)
        best, token_ids = logprobs.max(dim=-1, keepdim=True)
        is_wider = torch.zeros_like(token_ids)
        if kind.has_sampled:
            drawn, is_wider = self._draw(logprobs)
            is_sampled = self.field("temperature", len(logits)) > 0
            token_ids = torch.where(is_sampled, drawn, token_ids)
            best = logprobs.gather(1, token_ids)
        parts = [token_ids, best, is_wider]
        if kind.has_beams:
            totals = logprobs + self.field("beam_score", len(logits)).float()
            scores, candidates = totals.topk(min(MAX_CANDIDATES, logits.shape[1]))
            parts += [candidates, logprobs.gather(1, candidates), scores]
        return torch.cat([part.double() for part in parts], dim=1)

    def next_inputs(self, results: Tensor) -> Tensor:
        """Return the tokens (R,) that the first R slots read in the next pass; slots beyond those written, any."""
        inputs = self.field("input", len(results))[:, 0]
        chosen = results[:, 0].long()[inputs.clamp(0, len(results) - 1)]
        return torch.where(inputs < 0, ~inputs, chosen)

    def _allowed_logprobs(self, logits: Tensor) -> Tensor:
        """Return the log-probabilities (R, V), float32, with forbidden tokens at -inf.

        Only operations that take numbers as arguments: a number that torch makes a tensor of would be copied to the
        device, which a capture does not permit.
        """
        banned, forced = self.field("banned", len(logits)), self.field("forced", len(logits))
        bounds = torch.full_like(banned, math.inf, dtype=torch.float32).masked_fill(banned >= 0, -math.inf)
        scores = logits.to(torch.float32, copy=True).scatter_reduce_(1, banned.clamp(min=0), bounds, "amin")
        logprobs = torch.log_softmax(scores, dim=-1)
        is_other = torch.arange(logits.shape[1], device=logits.device) != forced  # (R, V)
        only_forced = torch.zeros_like(logprobs).masked_fill_(is_other, -math.inf)
        logprobs = torch.where(forced >= 0, only_forced, logprobs)
        return torch.minimum(logprobs, packed_bounds(self.field("allowed", len(logits)), self._num_tokens))

    def _draw(self, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Return a token (R, 1) drawn for each row, and whether its nucleus is wider than the usual one (R, 1)."""
        temperature, top_p, uniform = (self.field(name, len(logprobs)) for name in ("temperature", "top_p", "uniform"))
        warm = temperature.masked_fill(temperature == 0, 1.0)
        probabilities = torch.softmax(logprobs / warm.float(), dim=-1)
        has_nucleus = top_p < 1
        narrow, is_wider = draw_from_usual_nucleus(probabilities, top_p, uniform)
        drawn = torch.where(has_nucleus, narrow, draw_from_all(probabilities, uniform))
        return drawn, is_wider[:, None] & has_nucleus & (temperature > 0)


def has_wider_nucleus(results: Sequence[Sequence[float]], rows: Sequence[int]) -> bool:
    """Return True if one of `rows` was drawn from too few tokens."""
    return any(results[row][_NUM_SINGLE - 1] for row in rows)


def unpack(
    results: Sequence[Sequence[float]], conditions: Sequence[RowConditions], sequences: Sequence[Sequence[int]]
) -> list[list[Choice]]:
    """Return the choices of each sequence, as `choose_tokens` does, from the results of all rows."""
    choices: list[list[Choice]] = []
    for rows in sequences:
        first = conditions[rows[0]]
        if first.beam_score is None:
            choices.append([_single(results[row]) for row in rows])
        else:
            found = [each for place, row in enumerate(rows) for each in _candidates(place, results[row])]
            # NaN first, as it fails the sequence; Python's sort keeps the order of equal scores.
            found.sort(key=lambda choice: -math.inf if math.isnan(choice.score) else -choice.score)
            choices.append(found[: first.num_candidates])
    return choices


def _single(result: Sequence[float]) -> Choice:
    return Choice(0, int(result[0]), result[1], result[1])


def _candidates(place: int, result: Sequence[float]) -> list[Choice]:
    size = (len(result) - _NUM_SINGLE) // 3
    columns = (result[start : start + size] for start in range(_NUM_SINGLE, len(result), size))
    return [Choice(place, int(token_id), *scores) for token_id, *scores in zip(*columns, strict=True)]
