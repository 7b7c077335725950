"""The saturation point by stepping: the highest load of which nine tenths come back as good answers.

Levels double until a step falls below that, then the gap between the highest that holds and the lowest that does not is
halved, on a scale of ratios, some times. One step is never the last word: what counts is that every lower one holds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HELD_SHARE = 0.9  # of the requests of a step that must be good
NUM_REFINEMENTS = 3  # the gap of a doubling becomes one of 9 %


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one level."""

    level: float
    num_due: int
    num_good: int

    @property
    def holds(self) -> bool:
        """Whether enough was good."""
        return self.num_good >= HELD_SHARE * self.num_due


@dataclass(frozen=True, slots=True)
class Saturation:
    """Between which levels the saturation point lies; None: not found on that side."""

    held: float | None
    not_held: float | None


def saturation_of(steps: Sequence[Step]) -> Saturation:
    """Return the lowest level that did not hold, and the highest below it that did."""
    not_held = min((step.level for step in steps if not step.holds), default=None)
    below = (step.level for step in steps if step.holds and (not_held is None or step.level < not_held))
    return Saturation(max(below, default=None), not_held)


def next_level(steps: Sequence[Step], first: float, quantum: float) -> float | None:
    """Return the level to try next, a multiple of `quantum`; None where the point is known well enough."""
    if not steps:
        return first
    found = saturation_of(steps)
    if found.not_held is None:
        return 2 * max(step.level for step in steps)
    num_refined = len(steps) - 1 - next(index for index, step in enumerate(steps) if not step.holds)
    middle = found.not_held / 2 if found.held is None else math.sqrt(found.held * found.not_held)
    level = max(quantum, round(middle / quantum) * quantum)
    is_known = num_refined >= NUM_REFINEMENTS or level in {step.level for step in steps}
    return None if is_known else level
