"""The tasks that a project's controls request from a model, for an image or for a prompt.

| control | task of an image |
| RectangleLabels | open_vocabulary_detection of its labels |
| PolygonLabels, BrushLabels | instance_segmentation of each label |
| TextArea | captioning, or its `model_task`: ocr, visual_question_answering |
| Rectangle or Polygon with a TextArea perRegion | ocr_with_regions, or dense_region_captioning |
| Rectangle | region_proposal |
| Choices | open_vocabulary_detection of its choices, or visual_question_answering of
  `model_question` |
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.errors import InvalidRequest, UnsupportedTask
from service.inference.core import Fields
from service.inference.prediction import Answer
from service.inference.request_fields import PredictFields, parse_fields
from service.inference.served_models import ServedModel
from service.label_studio.labelling_config import LABELS_TAGS, Control
from service.label_studio.regions import (
    JsonObject,
    RegionTags,
    boxes,
    chosen_answer,
    chosen_objects,
    labelled_boxes,
    labelled_masks,
    located_texts,
    written_text,
)
from tasks.errors import shown
from tasks.parameter_kinds import MAX_GIVEN_CHARS, MAX_LABELS

_QUESTION = "visual_question_answering"
_TEXT_TASKS = ("captioning", "ocr", _QUESTION)
_DETECTION = "open_vocabulary_detection"
_REGION_TEXT_TASKS = ("ocr_with_regions", "dense_region_captioning")
_SEGMENTATION = "instance_segmentation"
MAX_ASKS = 500  # per image
_MAX_PERCENT = 1_000_000  # a drawn box may extend beyond the image
_MAX_LINES = 100  # lines of a prompt: Label Studio sends the texts of a TextArea
_BOX = ("x", "y", "width", "height")
_SHAPES = ("Rectangle", "Polygon", "RectangleLabels", "PolygonLabels")


@dataclass(frozen=True, slots=True)
class Ask:
    """One task for a model, and what its answer becomes."""

    task: str
    image_key: str
    fields: Fields  # without model
    results: Callable[[Answer], Iterable[JsonObject]]

    def fields_of(self, model_id: str) -> Fields:
        """Return the fields with a model."""
        fields = self.fields
        if callable(fields):
            return lambda size_wh: {**fields(size_wh), "model": model_id}
        return {**fields, "model": model_id}


def batch_asks(controls: Sequence[Control]) -> tuple[Ask, ...]:
    """Return the tasks of an image; raise `InvalidRequest` for an invalid label or option."""
    filled = [each for each in controls if not (each.is_prompt or each.is_interactive_only)]
    texts = [each for each in filled if each.tag == "TextArea" and each.is_per_region]
    asks: list[Ask] = []
    for text in texts:
        tags = _region_tags(text, filled)
        filled = [each for each in filled if each not in (text, tags.shape, tags.label)]
        task = _chosen_task(text, _REGION_TEXT_TASKS, _REGION_TEXT_TASKS[0])
        fields = _fields(tags.text, task)
        asks.append(Ask(task, tags.text.image_key, fields, partial(located_texts, tags=tags)))
    for control in filled:
        if not control.is_per_region:
            asks += _control_asks(control)
    if len(asks) > MAX_ASKS:
        problem = f"the labelling configuration needs {len(asks)} predictions of an image"
        advice = "use fewer labels, or fewer phrases in predicted_values"
        raise InvalidRequest(f"{problem}; the maximum is {MAX_ASKS}: {advice}", "label_config")
    for ask in asks:
        if isinstance(ask.fields, Mapping):
            parse_fields(PredictFields, ask.fields)
    return tuple(asks)


def _region_tags(text: Control, controls: Sequence[Control]) -> RegionTags:
    """Return the tags of a perRegion text: the first shape over its image, and a label."""
    near = [each for each in controls if each.image == text.image]
    shapes = [each for each in near if each.tag in _SHAPES]
    shape = min(shapes, key=lambda each: _SHAPES.index(each.tag), default=None)
    if shape is None:
        raise InvalidRequest(
            f"TextArea {text.name} is perRegion and needs one of {', '.join(_SHAPES)}",
            "label_config",
        )
    label = (
        shape
        if shape.labels
        else next((each for each in near if each.tag == "Labels" and each.labels), None)
    )
    return RegionTags(shape, text, label)


def _control_asks(control: Control) -> Iterator[Ask]:
    match control.tag:
        case "RectangleLabels":
            yield from _detection_asks(control, labelled_boxes)
        case "PolygonLabels" | "BrushLabels":
            for label in control.labels:
                for phrase in label.phrases:
                    yield _segmentation_ask(control, label.value, {"phrase": phrase})
        case "Rectangle":
            yield _ask(control, "region_proposal", boxes)
        case "TextArea":
            task = _text_task(control)
            # without a question, the user's prompt is the question
            if task != _QUESTION or "model_question" in control.attributes:
                yield _ask(control, task, written_text)
        case "Choices" if "model_question" in control.attributes:
            yield _ask(control, _QUESTION, chosen_answer)
        case "Choices":
            yield from _detection_asks(control, chosen_objects)


def _ask(
    control: Control,
    task: str,
    results: Callable[..., Iterable[JsonObject]],
    more: Mapping[str, object] | None = None,
) -> Ask:
    """Return a task with the options of its control, and `more` fields."""
    fields = {**_fields(control, task), **(more or {})}
    return Ask(task, control.image_key, fields, partial(results, control=control))


def _detection_asks(
    control: Control, results: Callable[..., Iterable[JsonObject]]
) -> Iterator[Ask]:
    """Yield detections of all phrases, split by the limit of a request."""
    by_case: dict[str, str] = {}
    for label in control.labels:
        by_case |= {phrase.casefold(): phrase for phrase in label.phrases}
    phrases = list(by_case.values())
    for start in range(0, len(phrases), MAX_LABELS):
        labels = phrases[start : start + MAX_LABELS]
        yield _ask(control, _DETECTION, results, {"labels": labels})


def _segmentation_ask(control: Control, label: str, what: Mapping[str, object]) -> Ask:
    results = partial(labelled_masks, label=label)
    return _ask(control, _SEGMENTATION, results, {**_mask_format(control), **what})


def _mask_format(control: Control) -> dict[str, object]:
    return {"mask_format": "rle" if control.tag == "BrushLabels" else "polygon"}


def _text_task(control: Control) -> str:
    default = _QUESTION if "model_question" in control.attributes else _TEXT_TASKS[0]
    return _chosen_task(control, _TEXT_TASKS, default)


def _chosen_task(control: Control, allowed: Sequence[str], default: str) -> str:
    task = control.attributes.get("model_task", default)
    if task not in allowed:
        given = f"model_task of {control.tag} {control.name} is {shown(task)}"
        raise InvalidRequest(f"{given}; it must be one of {', '.join(allowed)}", "label_config")
    return task


def _fields(control: Control, task: str) -> dict[str, object]:
    """Return the fields of a task that are options of its control."""
    options = {"captioning": ("detail", "language"), _QUESTION: ("question", "language")}
    attributes = control.attributes
    fields: dict[str, object] = {"task": task}
    for name in options.get(task, ()):
        if f"model_{name}" in attributes:
            fields[name] = attributes[f"model_{name}"]
    text = attributes.get("model_score_threshold")
    if text is None:
        return fields
    try:
        return fields | {"min_score": float(text)}
    except ValueError as error:
        given = f"model_score_threshold of {control.tag} {control.name} is {shown(text)}"
        raise InvalidRequest(f"{given}; it must be from 0 to 1", "label_config") from error


def interactive_asks(controls: Sequence[Control], context: Mapping[str, object]) -> tuple[Ask, ...]:
    """Return the tasks of the last prompt, a text or a drawn box; raise `InvalidRequest`."""
    drawn = context.get("result")
    last = drawn[-1] if isinstance(drawn, list) and drawn else None
    if last is None:
        return ()
    value = last.get("value") if isinstance(last, dict) else None
    if not isinstance(value, dict):
        raise InvalidRequest(
            "an entry of context.result must be a region with a value", "context.result"
        )
    if value.get("text") is not None:
        return tuple(_prompted_asks(controls, _prompt(value["text"])))
    if all(name in value for name in _BOX):
        box = [_percent(name, value[name]) for name in _BOX]
        if box[2] > 0:
            return tuple(_boxed_asks(controls, value, box))
    kind = shown(last.get("type"))
    raise InvalidRequest(
        f"the prompt is of type {kind}; it must be a text or a rectangle: models take no points",
        "context.result",
    )


def _prompt(text: object) -> str:
    lines = [text] if isinstance(text, str) else text
    if (
        isinstance(lines, list)
        and len(lines) <= _MAX_LINES
        and all(isinstance(each, str) for each in lines)
    ):
        prompt = " ".join(lines)
        if len(prompt) <= MAX_GIVEN_CHARS:
            return prompt
    allowed = (
        f"a string or a list of at most {_MAX_LINES} strings, of at most {MAX_GIVEN_CHARS}"
        " characters together"
    )
    raise InvalidRequest(
        f"the text of a prompt is {shown(text)}; it must be {allowed}", "context.result.text"
    )


def _percent(name: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # false for NaN
    if is_number and -_MAX_PERCENT <= value <= _MAX_PERCENT:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    allowed = f"a number of percent from -{_MAX_PERCENT} to {_MAX_PERCENT}"
    raise InvalidRequest(
        f"{name} of a drawn box is {shown(value)}; it must be {allowed}", f"context.result.{name}"
    )


def _prompted_asks(controls: Sequence[Control], prompt: str) -> Iterator[Ask]:
    for control in controls:
        if control.tag == "RectangleLabels":
            label = control.label_of(prompt) or control.labels[0].value
            results = partial(labelled_boxes, label=label)
            yield _ask(control, _DETECTION, results, {"labels": [prompt]})
        elif control.tag in ("PolygonLabels", "BrushLabels"):
            yield _segmentation_ask(
                control, control.label_of(prompt) or control.labels[0].value, {"phrase": prompt}
            )
        elif _is_text(control) and _text_task(control) == _QUESTION:
            fields = {"task": _QUESTION, "question": prompt}
            yield Ask(_QUESTION, control.image_key, fields, partial(written_text, control=control))


def _is_text(control: Control) -> bool:
    return control.tag == "TextArea" and not (control.is_prompt or control.is_per_region)


def _boxed_asks(
    controls: Sequence[Control], value: Mapping[str, Any], box: Sequence[float]
) -> Iterator[Ask]:
    given = next((value[tag.lower()] for tag in LABELS_TAGS if tag.lower() in value), None)
    chosen = {each for each in given if isinstance(each, str)} if isinstance(given, list) else set()
    for control in controls:
        results: Callable[[Answer], Iterable[JsonObject]]
        if control.tag in ("PolygonLabels", "BrushLabels"):
            names = [label.value for label in control.labels]
            label = next((name for name in names if name in chosen), names[0])
            fields = _fields(control, _SEGMENTATION) | _mask_format(control)
            results = partial(labelled_masks, control=control, label=label)
        elif _is_text(control):
            fields = {"task": "region_description"}
            if control.attributes.get("model_task") == "ocr":
                fields["detail"] = "text"
            results = partial(written_text, control=control)
        else:
            continue
        yield Ask(
            str(fields["task"]), control.image_key, partial(_with_region, fields, box), results
        )


def _with_region(
    fields: Mapping[str, object], box: Sequence[float], size_wh: tuple[int, int]
) -> Mapping[str, object]:
    """Return the fields with a box in percent as a region in pixels, within the image."""
    x, y, width, height = box
    corners = (x, y, x + width, y + height)
    region = [
        min(max(at, 0), 100) * side / 100 for at, side in zip(corners, size_wh * 2, strict=True)
    ]
    return {**fields, "region": region}


def asks_of(model: ServedModel, asks: Iterable[Ask]) -> tuple[Ask, ...]:
    """Return the tasks that a model offers."""
    return tuple(ask for ask in asks if ask.task in model.entry.task_ids)


def check_offered(models: Sequence[ServedModel], asks: Sequence[Ask]) -> None:
    """Raise `UnsupportedTask` if no model offers any of the tasks."""
    if asks and not any(asks_of(model, asks) for model in models):
        names = ", ".join(model.id for model in models)
        tasks = ", ".join(sorted({ask.task for ask in asks}))
        raise UnsupportedTask(
            f"the labelling configuration needs {tasks}, which {names} does not offer",
            "label_config",
        )
