"""A dataset to tune on, of any format that `diptych evaluate` reads.

The client's readers read the labels, and the service's code decodes the images. Damaged labels and
images are left out. Boxes are in pixels of the upright image.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from diptych_client.evaluation import dataset as evaluated
from diptych_client.evaluation.readers import NoSuchSplit, read_dataset
from diptych_client.inputs import Folder, Opening, Problems, open_images
from diptych_client.long_runs import RunError
from export.checkpoints.errors import TuningError
from export.scenes.truth import LabelledBox
from imaging.errors import ImageError
from imaging.local_files import read_image
from tasks.results import BoxXyxy

_SPLIT = "train"


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """One image with the labels of one row; None for kinds of labels that the row does not have."""

    path: Path
    size_wh: tuple[int, int]  # upright image, px
    objects: tuple[LabelledBox, ...] | None = None
    captions: tuple[str, ...] = ()
    text: str | None = None
    region_xyxy: BoxXyxy | None = None
    questions: tuple[tuple[str, tuple[str, ...]], ...] = ()  # each with its answers
    phrases: tuple[LabelledBox, ...] = ()

    @property
    def has_labels(self) -> bool:
        """True if there is something to learn."""
        return bool(self.objects or self.captions or self.text or self.questions or self.phrases)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The labelled images of a dataset, and what of it is damaged."""

    images: tuple[LabelledImage, ...]
    problems: Problems


def read_labels(path: Path, work: Path, images: Path | None = None) -> Dataset:
    """Read the split `train` of a dataset, or one without splits whole.

    `work` is the folder for the files of an archive, `images` that of images elsewhere. Raise
    `TuningError` for a missing or malformed dataset, and for one without a readable image.
    """
    problems = Problems()
    try:
        opened = open_images([str(path)], Opening(work, problems))
        try:
            found = read_dataset(opened.path, images, _SPLIT, problems)
        except NoSuchSplit:
            found = read_dataset(opened.path, images, None, problems)
    except RunError as error:
        raise TuningError(str(error)) from error
    if not isinstance(found.store, Folder):
        raise TuningError(f"{path} has its images in Parquet or Arrow files; write them as files")
    sizes = _Sizes(problems)
    labelled = []
    for row in tqdm(found.images, desc="reading", unit=" images", leave=False, disable=None):
        file = found.store.path / row.image.name
        if size_wh := sizes.of(file):
            labelled.append(_labelled(file, size_wh, row))
    if not labelled:
        raise TuningError(f"{path} has no image that can be read: {problems.lines[0]}")
    if not any(image.has_labels for image in labelled):
        raise TuningError(f"{path}: {found.note or f'no labels found for {len(labelled)} images'}")
    return Dataset(tuple(labelled), problems)


class _Sizes:
    """Sizes of image files. Each file is decoded once: a damaged one is a problem."""

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._sizes = dict[Path, tuple[int, int] | None]()

    def of(self, path: Path) -> tuple[int, int] | None:
        """Return the size of the upright image, or None if it cannot be read."""
        if path not in self._sizes:
            self._sizes[path] = None
            try:
                self._sizes[path] = read_image(path).size
            except (OSError, ImageError) as error:
                self._problems.add(path, f"it cannot be read: {error}", "image left out")
        return self._sizes[path]


def _labelled(path: Path, size_wh: tuple[int, int], row: evaluated.LabelledImage) -> LabelledImage:
    phrases = [(each.phrase, each.box_xyxy) for each in row.phrases if each.box_xyxy is not None]
    objects = None
    if row.objects is not None:
        own = [(each.label, each.box_xyxy) for each in row.objects if not each.is_crowd]
        objects = _boxes(own)
    return LabelledImage(
        path,
        size_wh,
        objects,
        captions=row.captions or (),
        text=row.text,
        region_xyxy=row.region,
        questions=tuple((each.question, each.answers) for each in row.questions),
        phrases=_boxes(phrases),
    )


def _boxes(labelled: Iterable[tuple[str, BoxXyxy]]) -> tuple[LabelledBox, ...]:
    """Return boxes whose labels have single spaces, as a request's labels are read."""
    return tuple(LabelledBox(" ".join(label.split()), box) for label, box in labelled)
