"""The 150 things: names, kinds, synonyms, colours and look-alikes, from `things.csv`.

A thing with a colour is recoloured in scenes and named with its colour; the others keep theirs.
"""

import csv
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from export.scenes.scene import COLORS, Color

_FILE = Path(__file__).with_name("things.csv")
_SIBILANTS = ("s", "x", "ch", "sh")


@dataclass(frozen=True, slots=True)
class Thing:
    """A glyph with its names."""

    emoji: str
    name: str
    plural: str
    kinds: tuple[str, ...]  # at least one
    synonyms: tuple[str, ...]
    color: Color | None  # the glyph's own, if scenes may change it
    lookalikes: tuple[str, ...]  # names of other things

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that the thing answers to."""
        return self.name, *self.synonyms, *self.kinds


def plural_of(name: str) -> str:
    """Return the regular plural: `boxes`, `cherries`, `cats`."""
    if name.endswith(_SIBILANTS):
        return f"{name}es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return f"{name[:-1]}ies"
    return f"{name}s"


def read_things() -> tuple[Thing, ...]:
    things = []
    colors = {str(color): color for color in COLORS}
    with _FILE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            kinds, synonyms, lookalikes = (
                tuple(filter(None, row[column].split(";")))
                for column in ("kinds", "synonyms", "lookalikes")
            )
            name = row["name"]
            things.append(
                Thing(
                    row["emoji"],
                    name,
                    row["plural"] or plural_of(name),
                    kinds,
                    synonyms,
                    colors[row["colour"]] if row["colour"] else None,
                    lookalikes,
                )
            )
    return tuple(things)


THINGS = read_things()
INDEX_OF = {thing.name: index for index, thing in enumerate(THINGS)}
KINDS = tuple(dict.fromkeys(chain.from_iterable(thing.kinds for thing in THINGS)))
