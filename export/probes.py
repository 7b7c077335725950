"""What an export is tried with: images of rendered scenes, and a prompt about each that the model offers."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from PIL import Image

from export.scenes import Question, Scene, questions, render_scene, sample_scene
from export.vision import ImageInput
from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedVariant
from tasks.families import FAMILIES
from tasks.parameters import parse_parameters
from tasks.prompts import Prompt
from tasks.table import TASKS

NUM_PROBES = 20
MAX_NEW_TOKENS = 64
_SCENE_PX = 256  # not the input size of any model, so that resizing takes part


@dataclass(frozen=True, slots=True)
class Probe:
    """One image, resized as the service does, and one prompt about it."""

    image: Image.Image
    prompt: Prompt
    max_new_tokens: int

    @property
    def text(self) -> str:
        """The prompt as one string."""
        return "".join(segment.text for segment in self.prompt)


def make_probes(
    entry: CatalogEntry, image_input: ImageInput, num_probes: int = NUM_PROBES, max_new_tokens: int = MAX_NEW_TOKENS
) -> tuple[Probe, ...]:
    """Return probes of different scenes whose prompts go round the tasks that the model offers."""
    scenes = map(sample_scene, count())
    return tuple(
        Probe(_resized(render_scene(scene, _SCENE_PX), image_input), _nth_prompt(entry, scene, index), max_new_tokens)
        for index, scene in zip(range(num_probes), scenes, strict=False)
    )


def _resized(image: Image.Image, image_input: ImageInput) -> Image.Image:
    return image.resize(image_input.size_wh, Image.Resampling(image_input.resample))


def _nth_prompt(entry: CatalogEntry, scene: Scene, index: int) -> Prompt:
    prompts = [prompt for question in questions(scene) for prompt in _prompts(entry, question)]
    return prompts[index % len(prompts)]


def _prompts(entry: CatalogEntry, question: Question) -> Iterator[Prompt]:
    """Yield the first prompt that asks the model `question`, nothing if it does not offer that."""
    if not entry.offers(question.task):
        return
    parameters = parse_parameters(TASKS[question.task], question.parameters)
    try:
        yield FAMILIES[entry.family].task_prompts(entry, question.task, parameters, (_SCENE_PX, _SCENE_PX))[0]
    except UnsupportedVariant:
        return
