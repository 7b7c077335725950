"""X-AnyLabeling's remote server protocol over the core.

The API key is in the header `Token`. Errors have the statuses and the body of the service's own
interface, and not the 200 of X-AnyLabeling-Server, as X-AnyLabeling shows a failed status only.

| result | shapes, in pixels |
| detections | a rectangle each |
| instances | a polygon for each outer ring: X-AnyLabeling's polygons have no holes |
| text_regions | a polygon of four points each, with its text as description |
| text | none: the description of the image; of a region, a rectangle with the text as label |

Source: CVHub520/X-AnyLabeling@0f38687 anylabeling/services/auto_labeling/remote_server.py
(requests), anylabeling/views/labeling/widgets/auto_labeling/auto_labeling.py (widgets),
anylabeling/views/labeling/widgets/canvas.py (marks); CVHub520/X-AnyLabeling-Server@aad6ffa
docs/router.md, docs/user_guide.md (answers).
"""

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from starlette.requests import Request
from starlette.routing import Route

from service.admission.places import RequestContext
from service.admission.threads import POSTPROCESSING
from service.http.body import MAX_JSON_VALUES, read_body
from service.http.boundary import Body, Interface, RestBoundary
from service.inference.models import ServedModel
from service.inference.prediction import Answer
from service.schema.outlines import corners, outlines, simplified
from service.validation import validated
from tasks import results
from tasks.results import BoxXyxy, PointXy
from tasks.table import MAX_GIVEN_CHARS, TASKS
from wire.disconnection import while_connected

JsonObject = dict[str, Any]

PREFIX = "/integrations/x-anylabeling"
_SEPARATORS = re.compile(r"[.,;]")
_DEFAULT_EPSILON = 0.001  # X-AnyLabeling's default
_MAX_NAME_CHARS = 200
_MAX_MARKS = 1000
_MAX_NUMBERS = 1000  # per mark: a point has 2, a rectangle 4
# The values with which X-AnyLabeling starts; an intersection over union of 1 suppresses no box.
_INITIAL_VALUES = {"edit_conf": 0.0, "edit_iou": 1.0, "toggle_preserve_existing_annotations": False}
_UNLABELLED = "object"  # X-AnyLabeling requires a label
_TEXT_LABEL = "text"


# tasks with a text of the user: the parameter that takes it, and the text's placeholder
_TEXTS = {
    "open_vocabulary_detection": ("labels", "Objects to detect: red circle, blue square"),
    "phrase_grounding": ("caption", "Caption or phrase to locate"),
    "instance_segmentation": ("phrase", "Object to segment"),
    "visual_question_answering": ("question", "Question about the image"),
}
_WITH_RECTANGLE = "region_description"
_SCORE_WIDGETS = ("input_conf", "edit_conf", "input_iou", "edit_iou")
_MASK_WIDGETS = ("mask_fineness_slider", "mask_fineness_value_label")
_RECTANGLE_WIDGETS = ("button_add_rect", "button_clear", "button_finish_object")


class _Body(BaseModel):
    # Fields that are not read are ignored; `read_body` counts them.
    model_config = ConfigDict(json_schema_extra={"maxProperties": MAX_JSON_VALUES})


class Mark(_Body):
    """A point or rectangle that the user drew, in pixels."""

    type: str = Field(max_length=_MAX_NAME_CHARS)
    data: list[FiniteFloat] = Field(max_length=_MAX_NUMBERS)


class Params(_Body):
    """The parameters of a call."""

    current_task: str | None = Field(None, max_length=_MAX_NAME_CHARS)
    text_prompt: str | None = Field(None, max_length=MAX_GIVEN_CHARS)
    marks: list[Mark] = Field([], max_length=_MAX_MARKS)
    conf_threshold: float = Field(0.0, ge=0, le=1)
    iou_threshold: float = Field(1.0, ge=0, le=1)
    epsilon_factor: float = Field(_DEFAULT_EPSILON, ge=0, le=1)


class Call(_Body):
    """The body of a call except its image."""

    model: str = Field(max_length=_MAX_NAME_CHARS)
    params: Params = Params()


def _authorization(request: Request) -> str | None:
    headers = request.headers
    bearers = [f"Bearer {token}" for token in headers.getlist("token") if token]
    return ", ".join((*headers.getlist("authorization"), *bearers)) or None


X_ANYLABELING = Interface("x_anylabeling", PREFIX, authorization=_authorization)


class XAnyLabelingApi:
    """The endpoints of the protocol."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        route = partial(self._boundary.route, interface=X_ANYLABELING)
        return [
            route("GET", "/health", self.health),
            route("GET", "/v1/models", self.list_models),
            route("GET", "/v1/models/{model}/info", self.show_model),
            route("POST", "/v1/predict", self.predict),
        ]

    async def health(self, _request: Request, _context: RequestContext) -> Body:
        num_models = len(tuple(self._boundary.core().models))
        now = datetime.now(UTC).isoformat()
        return {"status": "healthy", "models_loaded": num_models, "timestamp": now}

    async def list_models(self, _request: Request, _context: RequestContext) -> Body:
        return _succeeded({model.id: _model_json(model) for model in self._boundary.core().models})

    async def show_model(self, request: Request, _context: RequestContext) -> Body:
        model: ServedModel = self._boundary.core().models.get(request.path_params["model"])
        return _succeeded({"model_id": model.id, **_model_json(model)})

    async def predict(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        body = await self._boundary.read(read_body, request, context)
        call = validated(Call, body.fields)
        fields = request_fields(call, core.models.get(call.model).entry.task_ids)
        answer = await while_connected(request.receive, core.predict(body.image, fields, context))
        region = answer.request.parameters.region
        return _succeeded(
            await POSTPROCESSING.run(shapes_json, answer, call.params.epsilon_factor, region)
        )


def _succeeded(data: object) -> JsonObject:
    return {"success": True, "data": data}


def _model_json(model: ServedModel) -> JsonObject:
    return {
        "display_name": model.id,
        "widgets": [{"name": name, "value": value} for name, value in _INITIAL_VALUES.items()],
        "params": {},
        "available_tasks": [_task_json(task_id) for task_id in model.entry.task_ids],
    }


def _task_json(task_id: str) -> JsonObject:
    kind = TASKS[task_id].result_kind
    names = ["toggle_preserve_existing_annotations"]
    if kind != "text":
        names += _SCORE_WIDGETS
    if kind == "instances":
        names += _MASK_WIDGETS
    mode: str | None = "default"
    if task_id in _TEXTS:
        names += ["edit_text", "button_send"]
        mode = "text_prompt"
    elif task_id == _WITH_RECTANGLE:
        names += _RECTANGLE_WIDGETS
        mode = None  # a batch has no rectangles
    else:
        names.append("button_run")
    widgets: dict[str, JsonObject] = {name: {} for name in names}
    if task_id in _TEXTS:
        widgets["edit_text"] = {"placeholder": _TEXTS[task_id][1]}
    return {
        "id": task_id,
        "name": task_id.replace("_", " ").capitalize(),
        "active_widgets": widgets,
        "batch_processing_mode": mode,
    }


def request_fields(call: Call, task_ids: tuple[str, ...]) -> JsonObject:
    """Return the fields of a request; an unnamed task is the model's first."""
    params = call.params
    task_id = params.current_task or task_ids[0]
    fields: JsonObject = {"model": call.model, "task": task_id, "min_score": params.conf_threshold}
    if 0 < params.iou_threshold < 1:
        fields["nms_iou"] = params.iou_threshold
    rectangles = [mark.data for mark in params.marks if mark.type == "rectangle"]
    if task_id == _WITH_RECTANGLE and rectangles:
        # the category becomes the rectangle's label
        fields |= {"region": rectangles[-1], "detail": "category"}
    elif task_id in _TEXTS and params.text_prompt is not None:
        name, _ = _TEXTS[task_id]
        fields[name] = params.text_prompt
        if name == "labels":
            fields[name] = list(filter(None, map(str.strip, _SEPARATORS.split(params.text_prompt))))
    return fields


def shapes_json(answer: Answer, epsilon_factor: float, region: BoxXyxy | None) -> JsonObject:
    """Return the data of a call; `region` is the box that the answer describes.

    `epsilon_factor` is the tolerance of simplified polygons, as a share of their perimeter
    (OpenCV's approxPolyDP).
    """
    if isinstance(answer.result, results.TextResult) and region is None:
        # True would delete the shapes
        return {"shapes": [], "description": answer.result.text, "replace": False}
    return {"shapes": list(_shapes(answer, epsilon_factor, region)), "description": ""}


def _shapes(answer: Answer, epsilon_factor: float, region: BoxXyxy | None) -> Iterator[JsonObject]:
    match answer.result:
        case results.DetectionsResult(detections):
            for detection in detections:
                yield _shape("rectangle", corners(detection.box), detection.label, detection.score)
        case results.InstancesResult(instances):
            for instance in instances:
                for ring in outlines(instance):
                    points = simplified(ring, epsilon_factor * ring.length)
                    yield _shape("polygon", points, instance.label, instance.score)
        case results.TextRegionsResult(text_regions):
            for text_region in text_regions:
                shape = _shape("polygon", text_region.quad, _TEXT_LABEL, text_region.score)
                yield shape | {"description": text_region.text}
        case results.TextResult(text) if region is not None:
            yield _shape("rectangle", corners(region), text, None)


def _shape(kind: str, points: Sequence[PointXy], label: str, score: float | None) -> JsonObject:
    return {
        "label": label or _UNLABELLED,
        "shape_type": kind,
        "points": [list(point) for point in points],
        "score": score,
    }
