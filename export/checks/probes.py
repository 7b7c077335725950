"""The probes of an export: images of rendered scenes, each with a prompt of a task that the model
offers.

Precisions are also measured on images that drive activations to extremes: white, black and noise.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from export.artifacts.vision_module import ImageInput
from export.scenes import question_prompts, questions, render_scene, sample_scene
from imaging.files import resize
from tasks.catalog import CatalogEntry
from tasks.prompts import Prompt

_SCENE_PX = 256  # differs from every model's input size, so that resizing is covered


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The number of probes, and the maximum number of tokens of an answer."""

    num_probes: int
    max_new_tokens: int


_PROBES = ProbePlan(20, 64)
# where an image takes seconds, or every token reads gigabytes of weights
_FEW_PROBES = ProbePlan(8, 32)
_MANY_PARAMETERS = 1e8


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


def plan_for(entry: CatalogEntry) -> ProbePlan:
    """Return the probes of an export of `entry`."""
    return _FEW_PROBES if entry.parameters > _MANY_PARAMETERS else _PROBES


def make_probes(
    entry: CatalogEntry, image_input: ImageInput, plan: ProbePlan = _PROBES
) -> tuple[Probe, ...]:
    """Return probes of different scenes, cycling through the tasks that the model offers."""
    probes = []
    for index in range(plan.num_probes):
        scene = sample_scene(index)
        rendered = render_scene(scene, _SCENE_PX)
        image = resize(rendered, image_input.size_wh, image_input.resample)
        offered = []  # the first prompt of each question
        for question in questions(scene):
            if prompts := question_prompts(entry, question, rendered.size):
                offered.append(prompts[0].segments)
        probes.append(Probe(image, offered[index % len(offered)], plan.max_new_tokens))
    return tuple(probes)


def extreme_images(size_wh: tuple[int, int]) -> dict[str, Image.Image]:
    """Return images of `size_wh` by name.

    In a plain image all tokens are alike, so their products add up.
    """
    width, height = size_wh
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {
        "white": Image.new("RGB", size_wh, "white"),
        "black": Image.new("RGB", size_wh, "black"),
        "noise": Image.fromarray(noise),
    }
