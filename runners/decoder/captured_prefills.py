"""Prefills in fixed shapes, which a GPU captures once and replays.

Problem: an eager prefill launches hundreds of kernels, and every new length is a new shape.

Solution: admitted sequences run in parts of 8, 4, 2 and 1, so that no row is padded; images with
their prompts are padded to a multiple of 16 positions, which masks hide. Of each part

    numbers     token ids, lengths and claimed slots: 1 transfer from the host
    features    1 copy on the device for each sequence
    replay      writes lengths and slots, keys and values, and the logits of first tokens

Longer prompts, adapters and too many beams are left to the eager prefill. Knows no family. Shapes:
B sequences of a part, S positions of image and prompt, W slots of a sequence, C hidden, V
vocabulary.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product, starmap
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from runners.cuda_graphs.buckets import prompt_lengths
from runners.cuda_graphs.graphs import Capture, CudaGraph
from runners.decoder.sequences import SequenceRequest
from runners.kv_cache.shape import DecoderShape
from runners.kv_cache.slot_cache import NUM_CLAIMED, ClaimedSlot
from runners.staging import array_into

logger = logging.getLogger(__name__)

_NUM_SEQUENCES = (1, 2, 4, 8)
# limits a part: the memory of its activations stays reserved
_MAX_POSITIONS = 5120
_IMAGE = -1  # the token id of a position that holds a feature


@dataclass(frozen=True, slots=True)
class PrefillShape:
    """The shape of a captured prefill."""

    num_sequences: int
    length: int  # positions: image, prompt and padding

    @property
    def num_positions(self) -> int:
        return self.num_sequences * self.length


@dataclass(frozen=True, slots=True)
class FixedPrefill:
    """The inputs of a captured prefill: views of memory at fixed addresses."""

    features: Tensor  # (B, S, C) float32, at the positions of the image
    token_ids: Tensor  # (B, S), negative at the positions of the image
    num_prefix_tokens: Tensor  # (B,)
    rows: Tensor  # (B,) of the logits among all admitted sequences
    claimed: Tensor  # (B, W, 5): all slots of each sequence, some maybe repeated

    def embeds(self, of_tokens: Tensor) -> Tensor:
        """Return features and embedded tokens (B, S, C) at their positions."""
        is_image = (self.token_ids < 0)[..., None]
        return torch.where(is_image, self.features.to(of_tokens.dtype), of_tokens)


Compute = Callable[[FixedPrefill], Tensor]  # returns the logits (B, V)


def prefill_shapes(shape: DecoderShape, num_slots: int) -> list[PrefillShape]:
    """Return the captured shapes, the largest first: its memory serves the others."""
    lengths = prompt_lengths(shape.num_image_tokens, shape.num_positions)
    found = list(starmap(PrefillShape, product(_NUM_SEQUENCES, lengths)))
    found = [
        each
        for each in found
        if each.num_sequences <= num_slots and each.num_positions <= _MAX_POSITIONS
    ]
    return sorted(found, key=attrgetter("num_positions"), reverse=True)


class CapturedPrefills:
    """The captured prefills of one decoder; each sequence has up to `max_beams` slots."""

    def __init__(
        self, compute: Compute, shapes: Sequence[PrefillShape], hidden_size: int, max_beams: int
    ) -> None:
        self._compute = compute
        self._shapes = shapes
        self._hidden_size = hidden_size
        self._max_beams = max_beams
        self._graphs: dict[PrefillShape, CudaGraph] = {}

    @property
    def num_captured(self) -> int:
        return len(self._graphs)

    def capture_all(self, capture: Capture, device: torch.device) -> None:
        """Capture all shapes while no slot is in use; log a failure, after which the others run
        eagerly.
        """
        num_features = 0
        num_numbers = 0
        for shape in self._shapes:
            num_features = max(num_features, shape.num_positions)
            num_numbers = max(num_numbers, shape.num_sequences * self._num_columns(shape))
        try:
            self._features = torch.zeros(num_features * self._hidden_size, device=device)
            self._numbers = torch.zeros(num_numbers, dtype=torch.long, device=device)
            for shape in self._shapes:
                inputs = self._inputs(shape)
                self._numbers.zero_()
                # a sequence without a position would give NaN, which slots pass on
                inputs.num_prefix_tokens.fill_(1)
                self._graphs[shape] = capture(partial(self._compute, inputs))
        except RuntimeError:
            logger.exception("no CUDA graph for a prefill")

    def hold(self, requests: Sequence[SequenceRequest]) -> bool:
        """Return True if all `requests` can be prefilled by captured passes."""
        if any(each.adapter or each.num_beams > self._max_beams for each in requests):
            return False
        return PrefillShape(1, self._length(requests)) in self._graphs

    def run(
        self, requests: Sequence[SequenceRequest], claimed: Sequence[Sequence[ClaimedSlot]]
    ) -> None:
        """Prefill into the claimed slots of each request, whose logits get its number."""
        length = self._length(requests)
        start = 0
        while start < len(requests):
            shape = self._largest(len(requests) - start, length)
            part = range(start, start + shape.num_sequences)
            start = part.stop
            self._load(shape, part, requests, claimed)
            self._graphs[shape].replay()

    def _length(self, requests: Sequence[SequenceRequest]) -> int:
        """Return the captured length that holds all `requests`; 0: there is none."""
        longest = max(request.num_prefix_tokens for request in requests)
        lengths = {each.length for each in self._graphs if each.num_sequences == 1}
        return min((each for each in lengths if each >= longest), default=0)

    def _largest(self, num_sequences: int, length: int) -> PrefillShape:
        """Return the captured shape of a length with the most sequences up to `num_sequences`."""
        possible = (
            each
            for each in self._graphs
            if each.length == length and each.num_sequences <= num_sequences
        )
        return max(possible, key=attrgetter("num_sequences"))

    def _num_columns(self, shape: PrefillShape) -> int:
        return shape.length + 2 + self._max_beams * NUM_CLAIMED

    def _inputs(self, shape: PrefillShape) -> FixedPrefill:
        num = shape.num_sequences
        num_features = shape.num_positions * self._hidden_size
        features = self._features[:num_features].view(num, shape.length, self._hidden_size)
        numbers = self._numbers[: num * self._num_columns(shape)].view(num, -1)
        sizes = [shape.length, 1, 1, self._max_beams * NUM_CLAIMED]
        token_ids, lengths, rows, claimed = torch.split(numbers, sizes, dim=1)
        by_slot = claimed.view(num, self._max_beams, NUM_CLAIMED)
        return FixedPrefill(features, token_ids, lengths[:, 0], rows[:, 0], by_slot)

    def _load(
        self,
        shape: PrefillShape,
        part: range,
        requests: Sequence[SequenceRequest],
        claimed: Sequence[Sequence[ClaimedSlot]],
    ) -> None:
        """Copy the inputs of the requests `part`."""
        inputs = self._inputs(shape)
        numbers = np.zeros((len(part), self._num_columns(shape)), dtype=np.int64)
        for row, features, index in zip(numbers, inputs.features, part, strict=True):
            request = requests[index]
            num_features = len(request.image_features)
            num_tokens = request.num_prefix_tokens
            row[:num_features] = _IMAGE
            row[num_features:num_tokens] = request.prompt_ids
            row[shape.length : shape.length + 2] = num_tokens, index
            slots = claimed[index]
            repeated = [*slots, *[slots[0]] * (self._max_beams - len(slots))]
            row[shape.length + 2 :] = np.ravel(repeated)
            features[:num_features].copy_(request.image_features, non_blocking=True)
        array_into(self._numbers[: numbers.size], numbers.ravel())
