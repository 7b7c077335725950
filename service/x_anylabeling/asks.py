"""How X-AnyLabeling asks each task, and its parameters as fields of a request.

Source: CVHub520/X-AnyLabeling@0f38687
anylabeling/views/labeling/widgets/auto_labeling/auto_labeling.py (widgets),
anylabeling/views/labeling/widgets/canvas.py (marks).
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from service.http.json_values import MAX_JSON_VALUES
from service.inference.served_models import ServedModel
from tasks.parameter_kinds import MAX_GIVEN_CHARS
from tasks.table import TASKS

# The parameter that takes the text, with the placeholder of the input.
_TEXTS = {
    "open_vocabulary_detection": ("labels", "Objects to detect: red circle, blue square"),
    "phrase_grounding": ("caption", "Caption or phrase to locate"),
    "instance_segmentation": ("phrase", "Object to segment"),
    "visual_question_answering": ("question", "Question about the image"),
}
_RECTANGLE_TASKS = ("region_description",)
_SEPARATORS = re.compile(r"[.,;]")
_DEFAULT_EPSILON = 0.001  # X-AnyLabeling's default
_MAX_NAME_CHARS = 200
_MAX_MARKS = 1000
_MAX_NUMBERS = 1000  # per mark: a point has 2, a rectangle 4
# The values with which X-AnyLabeling starts; an intersection over union of 1 suppresses no box.
_INITIAL_VALUES = {"edit_conf": 0.0, "edit_iou": 1.0, "toggle_preserve_existing_annotations": False}


class _Given(BaseModel):
    # Fields that are not read are ignored; `read_body` counts them.
    model_config = ConfigDict(json_schema_extra={"maxProperties": MAX_JSON_VALUES})


class Mark(_Given):
    """A point or rectangle that the user drew, in pixels."""

    type: str = Field(max_length=_MAX_NAME_CHARS)
    data: list[FiniteFloat] = Field(max_length=_MAX_NUMBERS)


class Params(_Given):
    """The parameters of a call."""

    current_task: str | None = Field(None, max_length=_MAX_NAME_CHARS)
    text_prompt: str | None = Field(None, max_length=MAX_GIVEN_CHARS)
    marks: list[Mark] = Field([], max_length=_MAX_MARKS)
    conf_threshold: float = Field(0.0, ge=0, le=1)
    iou_threshold: float = Field(1.0, ge=0, le=1)
    epsilon_factor: float = Field(_DEFAULT_EPSILON, ge=0, le=1)


class Call(_Given):
    """The body of a call except its image."""

    model: str = Field(max_length=_MAX_NAME_CHARS)
    params: Params = Params()

    def fields(self, task_ids: tuple[str, ...]) -> dict[str, object]:
        """Return the fields of a request; an unnamed task is the model's first."""
        params = self.params
        task = self.params.current_task or task_ids[0]
        fields: dict[str, object] = {
            "model": self.model,
            "task": task,
            "min_score": params.conf_threshold,
        }
        if 0 < params.iou_threshold < 1:
            fields["nms_iou"] = params.iou_threshold
        rectangles = [mark.data for mark in params.marks if mark.type == "rectangle"]
        if task in _RECTANGLE_TASKS and rectangles:
            # it becomes the rectangle's label
            fields |= {"region": rectangles[-1], "detail": "category"}
        elif params.text_prompt is not None and task in _TEXTS:
            name, _ = _TEXTS[task]
            fields[name] = _labels(params.text_prompt) if name == "labels" else params.text_prompt
        return fields


def _labels(text: str) -> list[str]:
    return [label for each in _SEPARATORS.split(text) if (label := each.strip())]


def model_json(model: ServedModel) -> dict[str, Any]:
    """Return what X-AnyLabeling shows of a model: its name, its tasks, and the inputs of each."""
    return {
        "display_name": model.id,
        "widgets": [{"name": name, "value": value} for name, value in _INITIAL_VALUES.items()],
        "params": {},
        "available_tasks": [_task_json(task_id) for task_id in model.entry.task_ids],
    }


def _task_json(task_id: str) -> dict[str, Any]:
    widgets: dict[str, Mapping[str, str]] = {"toggle_preserve_existing_annotations": {}}
    mode: str | None = "default"
    if TASKS[task_id].result_kind != "text":
        widgets |= {name: {} for name in ("input_conf", "edit_conf", "input_iou", "edit_iou")}
    if task_id in _RECTANGLE_TASKS:
        mode = None  # a batch has no rectangles
        widgets |= {
            name: {} for name in ("button_add_rect", "button_clear", "button_finish_object")
        }
    elif task_id in _TEXTS:
        mode = "text_prompt"
        widgets |= {"edit_text": {"placeholder": _TEXTS[task_id][1]}, "button_send": {}}
    else:
        widgets["button_run"] = {}
    if TASKS[task_id].result_kind == "instances":
        widgets |= {"mask_fineness_slider": {}, "mask_fineness_value_label": {}}
    name = task_id.replace("_", " ").capitalize()
    return {"id": task_id, "name": name, "active_widgets": widgets, "batch_processing_mode": mode}
