"""Conditions on the next tokens, packed into one host buffer and copied in one transfer.

A row's conditions are those of `RowConditions` (runners/tokens/conditions.py). With them goes what
the next pass reads: the sequences of a pass may have moved to other slots since it was launched,
and others have no row in it. Shapes: R rows, B slots, W beams of a sequence.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.tokens.conditions import NextInputs, RowConditions

MAX_BANNED = 16  # tokens of a non-beam row: those of beams are in its mask
MAX_CANDIDATES = 16  # all beams of a sequence together
MAX_BEAMS = MAX_CANDIDATES // 2  # each has its own candidate and one for an end token
_DTYPES = {"f": torch.float64, "i": torch.int64, "u": torch.uint8}


def fits(conditions: Iterable[RowConditions]) -> bool:
    return all(
        len(each.banned) <= MAX_BANNED
        if each.beam_score is None
        else each.num_candidates <= MAX_CANDIDATES
        for each in conditions
    )


class PackedConditions:
    """The conditions on up to `num_rows` rows: written on the host, copied to the device."""

    def __init__(self, num_rows: int, num_tokens: int, device: torch.device) -> None:
        self.num_tokens = num_tokens
        num_bytes = 8 * math.ceil(num_tokens / 64)  # rows stay aligned to 8 bytes
        fields = [
            *[(name, np.float64) for name in ("temperature", "top_p", "uniform", "beam_score")],
            ("forced", np.int64),
            ("banned", np.int64, (MAX_BANNED,)),
            ("beams", np.int64, (MAX_BEAMS,)),
            ("place", np.int64),
            ("input_row", np.int64),  # row that chooses the slot's token; -1: none
            ("input_token", np.int64),  # token of a slot without such a row
            ("parents", np.int64, (MAX_BEAMS,)),
            ("moved", np.int64),
            ("allowed", np.uint8, (num_bytes,)),
        ]
        self._layout = np.dtype(fields)
        size = (num_rows, self._layout.itemsize)
        is_pinned = device.type == "cuda"
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=is_pinned)
        self._rows = self._host.numpy().view(self._layout)[:, 0]
        self._on_device = torch.zeros(size, dtype=torch.uint8, device=device)

    @property
    def num_bytes(self) -> int:
        return self._on_device.nbytes

    def write(
        self,
        conditions: Sequence[RowConditions],
        sequences: Sequence[Sequence[int]],
        inputs: NextInputs,
    ) -> None:
        """Write the conditions of the first rows and start one transfer to the device."""
        rows = self._rows[: len(conditions)]
        for name in ("temperature", "top_p", "uniform"):
            rows[name] = [getattr(each, name) for each in conditions]
        rows["beam_score"] = [each.beam_score or 0.0 for each in conditions]
        rows["forced"] = [-1 if each.forced is None else each.forced for each in conditions]
        rows["banned"] = rows["beams"] = -1
        for row, each in zip(rows, conditions, strict=True):
            self._write_tokens(row, each)
        for own in sequences:
            if conditions[own[0]].beam_score is not None:
                where = list(own)  # a tuple would be an index of several dimensions
                rows["beams"][where] = [*own, *[-1] * (MAX_BEAMS - len(own))]
                rows["place"][where] = range(len(own))
        slots = self._rows[: len(inputs.rows)]
        slots["input_row"] = [-1 if row is None else row for row in inputs.rows]
        slots["input_token"] = inputs.tokens
        self._rows["moved"][: len(inputs.parents)] = list(inputs.parents)
        for slot, parents in inputs.parents.items():
            self._rows["parents"][slot, : len(parents)] = parents
        num_rows = max(len(conditions), len(inputs.rows))
        self._on_device[:num_rows].copy_(self._host[:num_rows], non_blocking=True)

    def _write_tokens(self, row: "np.void", conditions: RowConditions) -> None:
        """Write the banned and the allowed tokens; what a beam's rules ban is not allowed."""
        mask: NDArray[np.uint8] = row["allowed"]
        if conditions.allowed is None:
            mask[:] = 255
        else:
            num_bytes = min(len(mask), len(conditions.allowed))
            mask[:num_bytes] = conditions.allowed[:num_bytes]
            mask[num_bytes:] = 0
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
