"""Simulates the test of `diptych annotate --labelled` for images unlike the labelled ones.

    python -m laboratory.evaluation.shifts [--models ID …] [--scenes N] [--runs N]
    [--labelled N] [--others N] [--answers D]

Each run draws labelled and other scenes. Without a shift both are plain. With one, the other scenes
are of 22 px, blurred or in other colours, or have a shape that no labelled one has: all of them, a
quarter in a separate folder, or a quarter among the others. Prints how often a difference is
noticed, and how often exactly that folder is left out. Needs the group `dev`, for `diptych
evaluate`.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from diptych_client.annotate.appearance import Seen, seen
from diptych_client.annotate.journal import Record
from diptych_client.annotate.shift import Shift, find_shift
from diptych_client.evaluation.readers import read_dataset
from diptych_client.transports.rest_messages import answer_from_json
from laboratory.evaluation.guarantees import MODELS, Asked, collect, labels_of
from loadtest.figures import table

TASK = "open_vocabulary_detection"
PLAIN = "plain"
SHIFTED = ("22px", "blurred", "recoloured")
NEW_CLASS = "new class"
_NEW_LABEL = "star"
_FOLDER = "shifted"
_PLAIN_FOLDER = "images"
_PARTS = {  # one of so many other images is shifted, and is in this folder
    "all": (1, _FOLDER),
    "a quarter": (4, _FOLDER),
    "a quarter among the others": (4, _PLAIN_FOLDER),
}


@dataclass(frozen=True, slots=True)
class Scenes:
    """The scenes of a condition as they are compared, with and without the new class."""

    known: tuple[Seen, ...]
    new: tuple[Seen, ...]

    @property
    def all(self) -> tuple[Seen, ...]:
        return (*self.known, *self.new)


@dataclass(frozen=True, slots=True)
class Draws:
    """Numbers of runs, and of the images of each."""

    num_runs: int = 200
    num_labelled: int = 100
    num_others: int = 80


_DEFAULT = Draws()


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect the answers that are not there, simulate and print a table."""
    parsed = _parse(arguments)
    draws = Draws(parsed.runs, parsed.labelled, parsed.others)
    rows = []
    with TemporaryDirectory() as temporary:
        folder = parsed.answers or Path(temporary)
        collect(folder, parsed.scenes, Asked(parsed.models, (TASK,), (PLAIN, *SHIFTED)))
        for model in parsed.models:
            plain = read_scenes(folder, PLAIN, model)
            found = simulate(plain.all, plain.all, 0, draws)
            rows.append([model, "none", "", *_shares(found, draws)])
            shifted = {NEW_CLASS: (plain.known, plain.new)}
            for name in SHIFTED:
                shifted[name] = (plain.all, read_scenes(folder, name, model).all)
            for (name, images), (part, place) in product(shifted.items(), _PARTS.items()):
                one_of, shifted_folder = place
                found = simulate(*images, draws.num_others // one_of, draws, shifted_folder)
                rows.append([model, name, part, *_shares(found, draws)])
    print(table(["model", "shift", "of the images", "noticed", "that folder alone"], rows))


def read_scenes(folder: Path, condition: str, model: str) -> Scenes:
    """Return the scenes of a condition with the answers of a model."""
    dataset = read_dataset(labels_of(folder / condition, TASK))
    labelled = {each.image.name: each for each in dataset.images}
    known: list[Seen] = []
    new: list[Seen] = []
    answers = folder / f"{condition}-{TASK}-{model}" / "answers.jsonl"
    for line in answers.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        image = labelled[row["image"]]
        record = Record(image.image, answer_from_json(row["answer"]))
        labels = row["parameters"]["labels"]
        is_new = _NEW_LABEL in {each.label for each in image.objects or ()}
        found = seen([record], dataset.store.read(image.image), labels)
        (new if is_new else known).append(found)
    return Scenes(tuple(known), tuple(new))


def simulate(
    plain: Sequence[Seen],
    shifted: Sequence[Seen],
    num_shifted: int,
    draws: Draws,
    folder: str = _FOLDER,
) -> list[Shift | None]:
    """Return what is found in each run; so many of the other images are shifted."""
    found = []
    num_plain = draws.num_labelled + draws.num_others - num_shifted
    for number in range(draws.num_runs):
        rng = np.random.default_rng(number)
        drawn = [plain[index] for index in rng.permutation(len(plain))[:num_plain]]
        labelled = drawn[: draws.num_labelled]
        others = drawn[draws.num_labelled :]
        for index in rng.permutation(len(shifted))[:num_shifted]:
            image = shifted[index]
            others.append(replace(image, name=f"{folder}/{Path(image.name).name}"))
        found.append(find_shift(labelled, others))
    return found


def _shares(found: Sequence[Shift | None], draws: Draws) -> list[str]:
    noticed = [shift for shift in found if shift is not None]
    alone = 0
    for shift in noticed:
        alone += [part.name for part in shift.parts] == [f"folder {_FOLDER}"]
    return [f"{len(noticed) / draws.num_runs:.3f}", f"{alone / draws.num_runs:.3f}"]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.evaluation.shifts", description=summary)
    add = parser.add_argument
    default = "default: %(default)s"
    both = "default: both embedded models"
    add("--models", nargs="+", metavar="ID", default=list(MODELS), help=both)
    add("--scenes", type=int, default=300, metavar="N", help=f"of each condition; {default}")
    add("--runs", type=int, default=_DEFAULT.num_runs, metavar="N", help=default)
    add("--labelled", type=int, default=_DEFAULT.num_labelled, metavar="N", help=default)
    add("--others", type=int, default=_DEFAULT.num_others, metavar="N", help=default)
    add("--answers", type=Path, metavar="D", help="keep the answers here, or read them again")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
