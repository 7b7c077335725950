"""Prompts for models behind an engine that speaks OpenAI's protocol, and the form of their answers.

A dialect is data: the sentences that ask a model for boxes, as it was trained, and how it writes
them, as JSON. Every other question is a plain sentence.

    qwen3-vl   [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}], 0 to 1000. Source: QwenLM/Qwen3-VL,
               cookbooks/2d_grounding.ipynb and ocr.ipynb
    qwen2.5-vl [{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}], pixels of the resized image. Source:
               QwenLM/Qwen2.5-VL, cookbooks/spatial_understanding.ipynb
    gemma      [{"box_2d": [y1, x1, y2, x2], "label": "cat"}], 0 to 1000. Source: Google,
               ai.google.dev/gemma/docs/capabilities/vision/image ("Object Detection")
    diptych    the fields of POST /v1/predict, answered by its `result`, in pixels
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from tasks.catalog import CatalogEntry, Dialect
from tasks.prompts import AskedTask, Prompt, PromptSegment, entry_template
from tasks.results import BoxXyxy, bounding_box
from tasks.table import TASKS, TaskParameters

_CAPTIONS = {
    "short": "Describe the image in one short sentence.",
    "detailed": "Describe the image in three sentences.",
    "paragraph": "Describe the image in one long paragraph.",
}
_QWEN_PATCH_PX = 28
_QWEN_MIN_PATCHES = 4
_QWEN_MAX_PATCHES = 16384
_READ_TEXT = "Read all the text in the image. Answer with the text only."


@dataclass(frozen=True, slots=True)
class BoxForm:
    """The form of boxes in a dialect, and the sentences that ask for them."""

    key: str
    is_y_first: bool
    side: int | None  # coordinates are from 0 to this on both axes; None: pixels as resized
    request: str  # {names}: of what is wanted
    last_joint: str  # between the last two names
    any_objects: str  # in place of names

    def box_xyxy(self, numbers: Sequence[float], image_size_wh: tuple[int, int]) -> BoxXyxy | None:
        """Return a written box in pixels of the image; None if it has no area.

        Raise ValueError for numbers outside the dialect's frame.
        """
        width, height = image_size_wh
        frame_wh = self._frame_wh(image_size_wh)
        ys = [numbers[0], numbers[2]] if self.is_y_first else [numbers[1], numbers[3]]
        xs = [numbers[1], numbers[3]] if self.is_y_first else [numbers[0], numbers[2]]
        if min(numbers) < 0 or max(xs) > frame_wh[0] or max(ys) > frame_wh[1]:
            raise ValueError(f"{numbers} are not within {frame_wh}")
        xs_px = [x / frame_wh[0] * width for x in xs]
        ys_px = [y / frame_wh[1] * height for y in ys]
        return bounding_box(zip(xs_px, ys_px, strict=True))

    def _frame_wh(self, image_size_wh: tuple[int, int]) -> tuple[int, int]:
        return qwen_size(image_size_wh) if self.side is None else (self.side, self.side)


def qwen_size(image_size_wh: tuple[int, int]) -> tuple[int, int]:
    """Return the size to which Qwen2.5-VL's processor resizes an image, by its default limits.

    Source: transformers, models/qwen2_vl/image_processing_qwen2_vl.py (smart_resize), and
    preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct.
    """
    width, height = image_size_wh
    in_patches = [round(side / _QWEN_PATCH_PX) for side in (width, height)]
    num_patches = in_patches[0] * in_patches[1]
    if num_patches > _QWEN_MAX_PATCHES:
        scale = math.sqrt(width * height / (_QWEN_MAX_PATCHES * _QWEN_PATCH_PX**2))
        in_patches = [max(1, int(side / scale / _QWEN_PATCH_PX)) for side in (width, height)]
    elif num_patches < _QWEN_MIN_PATCHES:
        scale = math.sqrt(_QWEN_MIN_PATCHES * _QWEN_PATCH_PX**2 / (width * height))
        in_patches = [math.ceil(side * scale / _QWEN_PATCH_PX) for side in (width, height)]
    return in_patches[0] * _QWEN_PATCH_PX, in_patches[1] * _QWEN_PATCH_PX


BOX_FORMS: Mapping[Dialect, BoxForm] = {
    "qwen3-vl": BoxForm(
        key="bbox_2d",
        is_y_first=False,
        side=1000,
        request=(
            'Locate every instance that belongs to the following categories: "{names}". Report'
            " bbox coordinates in JSON format."
        ),
        last_joint=", ",
        any_objects="every object",
    ),
    "qwen2.5-vl": BoxForm(
        key="bbox_2d",
        is_y_first=False,
        side=None,
        request=(
            "Outline the position of each {names} and output all the coordinates in JSON format."
        ),
        last_joint=" and ",
        any_objects="object",
    ),
    "gemma": BoxForm(
        key="box_2d",
        is_y_first=True,
        side=1000,
        request="detect {names}, output only ```json",
        last_joint=" and ",
        any_objects="all objects",
    ),
}


def task_prompts(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters, image_size_wh: tuple[int, int]
) -> tuple[Prompt, ...]:
    """Return the prompt of a task, without control tokens; raise `UnsupportedTask`."""
    del image_size_wh  # no prompt has a region
    entry_template(entry, task_id, parameters)  # checks that the task is offered
    return ((PromptSegment(_sentence(entry, task_id, parameters)),),)


def _sentence(entry: CatalogEntry, task_id: str, parameters: TaskParameters) -> str:
    form = BOX_FORMS.get(dialect_of(entry))
    if form is None:
        fields = {name: value for name, value in asdict(parameters).items() if value is not None}
        return json.dumps({"task": task_id, **fields}, ensure_ascii=False)
    if TASKS[task_id].result_kind == "detections":
        return form.request.format(names=_object_names(parameters, form))
    sentence = parameters.question or _READ_TEXT
    if task_id == "captioning":
        sentence = _CAPTIONS[parameters.detail or "short"]
    if parameters.language in (None, "en"):
        return sentence
    return f"{sentence} Answer in the language with the code {parameters.language}."


def _object_names(parameters: TaskParameters, form: BoxForm) -> str:
    if parameters.caption is not None:
        return f"the noun phrases of this sentence: {parameters.caption}"
    *others, last = asked_names(parameters) or (form.any_objects,)
    return form.last_joint.join(filter(None, [", ".join(others), last]))


def asked_names(parameters: TaskParameters) -> tuple[str, ...]:
    return parameters.labels or parameters.phrases or ()


def dialect_of(entry: CatalogEntry) -> Dialect:
    assert entry.engine is not None
    return entry.engine.dialect


def read_prompt(entry: CatalogEntry, text: str) -> AskedTask | None:  # noqa: ARG001
    """Return None: these models have no prompts of their own, any text is a question."""
    return None


def answer_schema(
    entry: CatalogEntry, task_id: str, parameters: TaskParameters
) -> dict[str, object] | None:
    """Return the JSON Schema of a list of objects, or None for a text."""
    form = BOX_FORMS.get(dialect_of(entry))
    if form is None or TASKS[task_id].result_kind != "detections":
        return None
    label: dict[str, object] = {"type": "string"}
    if names := asked_names(parameters):
        label["enum"] = list(names)
    coordinate: dict[str, object] = {"type": "integer", "minimum": 0}
    if form.side is not None:
        coordinate["maximum"] = form.side
    box = {"type": "array", "items": coordinate, "minItems": 4, "maxItems": 4}
    item = {
        "type": "object",
        "properties": {form.key: box, "label": label},
        "required": [form.key, "label"],
        "additionalProperties": False,
    }
    return {"type": "array", "items": item}
