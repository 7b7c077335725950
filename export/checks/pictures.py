"""The pictures on which the answers of precisions are compared, and the prompts about them.

Photographs and documents ship in models/photographs; `--images FOLDER` adds the user's. A file is
named after its subject, the label of detection and the phrase of segmentation: `red-car.jpg` shows
a "red car". Models that know rendered scenes only are also compared on scenes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from export.checkpoints.errors import SourceError
from export.scenes import render_scene, sample_scene
from imaging.errors import ImageError
from imaging.files import resize
from imaging.local_files import read_image
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.parameters import TaskParameters, parse_parameters
from tasks.prompts import Prompt
from tasks.table import TASKS
from wire.artifacts.manifest import Manifest

PictureKind = Literal["photographs", "scenes"]
Parameters = Mapping[str, str | list[str]]

_FIRST_SCENE = 1000  # the seed; others than those of the probes
_SCENE_PX = 256
_ANY_SHAPE = "circle"  # the subject of a scene without objects


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, resized as the service does, with the name of its subject."""

    kind: PictureKind
    rank: int  # among the pictures of its kind
    subject: str
    image: Image.Image
    original_size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A task about a picture, as one prompt."""

    picture: int  # index
    task_id: str
    parameters: TaskParameters
    prompt: Prompt


def spread(files: Sequence[Path], max_files: int) -> tuple[Path, ...]:
    """Return at most `max_files`, evenly distributed over `files`."""
    count = min(max_files, len(files))
    return tuple(files[index * len(files) // count] for index in range(count))


def load_photographs(files: Sequence[Path], manifest: Manifest) -> Iterator[Picture]:
    """Yield the photographs; raise `SourceError` for a file that is not an image."""
    for rank, file in enumerate(files):
        try:
            image = read_image(file)
        except (OSError, ImageError) as error:
            raise SourceError(f"{file} cannot be read as an image: {error}") from error
        subject = file.stem.replace("-", " ")
        yield Picture("photographs", rank, subject, _resized(image, manifest), image.size)


def make_scenes(num_scenes: int, manifest: Manifest) -> Iterator[Picture]:
    """Yield rendered scenes, each with its first object as subject."""
    for rank in range(num_scenes):
        scene = sample_scene(_FIRST_SCENE + rank)
        image = render_scene(scene, _SCENE_PX)
        subject = scene.objects[0].name if scene.objects else _ANY_SHAPE
        yield Picture("scenes", rank, subject, _resized(image, manifest), image.size)


def ask(
    entry: CatalogEntry,
    pictures: Sequence[Picture],
    num_each: Mapping[PictureKind, int],
    num_fully_asked: int,
) -> tuple[PictureQuestion, ...]:
    """Return `num_each` questions per picture, in turns of tasks; all tasks for the first."""
    questions = []
    for index, picture in enumerate(pictures):
        # each kind of answer: a sentence, boxes, outlines, text in the image
        boxes: tuple[str, Parameters] = ("open_vocabulary_detection", {"labels": [picture.subject]})
        if "object_detection" in entry.task_ids:
            boxes = ("object_detection", {})
        outlines: tuple[str, Parameters] = ("instance_segmentation", {"phrase": picture.subject})
        wanted = [("captioning", {}), boxes, outlines, ("ocr", {})]
        tasks = [each for each in wanted if each[0] in entry.task_ids]
        num_asked = len(tasks)
        if picture.rank >= num_fully_asked:
            num_asked = min(num_each[picture.kind], num_asked)
        for turn in range(num_asked):
            task_id, values = tasks[(picture.rank + turn) % len(tasks)]
            parameters = parse_parameters(TASKS[task_id], values)
            (prompt,) = FAMILIES[entry.family].task_prompts(
                entry, task_id, parameters, picture.original_size_wh
            )
            questions.append(PictureQuestion(index, task_id, parameters, prompt))
    return tuple(questions)


def _resized(image: Image.Image, manifest: Manifest) -> Image.Image:
    return resize(image, manifest.image_size_wh, manifest.resample)
