"""Engines captured by a fake: one notes the passes launched ahead, one launches none."""

import math

from torch import Tensor

from runners.decoder.engines import GraphEngine
from runners.decoder.protocol import Decoder
from runners.kv_cache import SlotCache
from runners.tokens.choice import NextInputs
from tests.support.device_traffic import capture_eagerly

NUM_SLOTS = 7


class NotedCache(SlotCache):
    """Slots that count what is rolled back."""

    num_rolled_back = 0

    def roll_back(self, slot: int) -> None:
        self.num_rolled_back += 1
        super().roll_back(slot)


class Passes(GraphEngine):
    """An engine that notes the passes launched ahead and those rolled back, and fails in one of
    them.
    """

    def __init__(self, decoder: Decoder, num_slots: int = NUM_SLOTS) -> None:
        super().__init__(decoder, num_slots, capture_eagerly)
        self._eager.cache = self.cache = self.noted = NotedCache(decoder.shape, num_slots)
        self.num_slots_ahead: list[int] = []
        self.failing: int | None = None  # the number of a pass launched ahead
        self.poisoned: tuple[int, int] | None = None  # likewise, and the slot that it makes NaN

    def look_ahead(self, inputs: NextInputs) -> Tensor:
        self.num_slots_ahead.append(len(inputs.rows))
        if len(self.num_slots_ahead) == self.failing:
            raise RuntimeError("the launch failed")
        launched = super().look_ahead(inputs)
        if self.poisoned is not None and self.poisoned[0] == len(self.num_slots_ahead):
            slot = self.poisoned[1]
            position = self.cache.num_tokens.of([slot])[0] - 1
            launched[slot] = math.nan
            self.cache.self_attention._memory[:, :, slot, :, position] = math.nan
            self.poisoned = None
        return launched
