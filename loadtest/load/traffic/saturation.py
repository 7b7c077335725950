"""The search for the saturation point: the highest load of which 90 % are good answers.

Levels double until a step does not hold. Then the interval between the highest level that holds and
the lowest that does not is halved by ratio some times. A level that does not hold is tried once
more, because the machine may have been busy with something else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HELD_SHARE = 0.9  # minimum share of good requests in a step that holds
MAX_TRIES = 2  # steps per level
NUM_REFINEMENTS = 3  # the interval of a factor of 2 becomes one of 9 %


@dataclass(frozen=True, slots=True)
class Step:
    """The result of one level."""

    level: float
    num_due: int
    num_good: int

    @property
    def holds(self) -> bool:
        return self.num_good >= HELD_SHARE * self.num_due


@dataclass(frozen=True, slots=True)
class Saturation:
    """The levels on both sides of the saturation point. A level not found is None."""

    held: float | None
    not_held: float | None


def saturation_of(steps: Sequence[Step]) -> Saturation:
    """Return the lowest level of which no step held, and the highest below it of which one held."""
    held = {step.level for step in steps if step.holds}
    not_held = min((step.level for step in steps if step.level not in held), default=None)
    below = (level for level in held if not_held is None or level < not_held)
    return Saturation(max(below, default=None), not_held)


def next_level(steps: Sequence[Step], first: float, quantum: float) -> float | None:
    """Return the next level, a multiple of `quantum`, or None if the interval is small."""
    if not steps:
        return first
    levels = [step.level for step in steps]
    if not steps[-1].holds and levels.count(levels[-1]) < MAX_TRIES:
        return levels[-1]
    found = saturation_of(steps)
    if found.not_held is None:
        return 2 * max(levels)
    middle = found.not_held / 2 if found.held is None else math.sqrt(found.held * found.not_held)
    level = max(quantum, round(middle / quantum) * quantum)
    held = {step.level for step in steps if step.holds}
    tried = list(dict.fromkeys(levels))
    first_not_held = next(index for index, each in enumerate(tried) if each not in held)
    num_refined = len(tried) - 1 - first_not_held
    return None if num_refined >= NUM_REFINEMENTS or level in levels else level
