"""Examples of a task: the prompt that the service sends about a labelled image, and the answer that
it parses back.

Prompts and location tokens are those of `tasks/`. Objects are written from left to right, as the
embedded checkpoints were trained: an order that follows from the picture can be learnt. Sources of
the formats: transformers, models/florence2/processing_florence2.py; google-research/big_vision,
big_vision/pp/proj/paligemma/segmentation.py.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from numpy.random import Generator, default_rng

from export.checkpoints.errors import TuningError
from export.scenes.truth import LabelledBox
from export.tuning.labels import LabelledImage
from tasks.catalog import CatalogEntry
from tasks.errors import TaskError
from tasks.families import FAMILIES
from tasks.florence2.locations import box_tokens as florence2_box_tokens
from tasks.florence2.prompts import asked_per_prompt
from tasks.paligemma.locations import box_tokens as paligemma_box_tokens
from tasks.parameter_kinds import MAX_LABELS
from tasks.parameters import parse_parameters
from tasks.parsing import without_article
from tasks.prompts import Prompt, PromptSegment, join_segments
from tasks.table import TASKS, Family


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt about an image and its answer, both as segments that keep labels apart from
    location tokens.
    """

    image: Path
    prompt: Prompt
    answer: Prompt


@dataclass(frozen=True, slots=True)
class _Asked:
    """Parameters of a request, and the true objects or text of its answer."""

    values: Mapping[str, object]
    truth: Sequence[LabelledBox] | str


def make_examples(
    entry: CatalogEntry, task_id: str, labelled: Sequence[LabelledImage], seed: int
) -> list[list[Example]]:
    """Return the examples of each image that has labels of the task.

    Raise `TuningError` for a task without labels of its kind, or a label that no request may have.
    """
    if task_id not in _ASKED:
        raise TuningError(f"no labels teach {task_id}; allowed are {', '.join(_ASKED)}")
    rng = default_rng(seed)
    classes = _classes(labelled)
    examples = [
        [
            example
            for asked in _ASKED[task_id](image, classes, rng)
            for example in _examples(entry, task_id, image, asked)
        ]
        for image in labelled
    ]
    if not any(examples):
        raise TuningError(
            f"the dataset has no labels of {task_id}; docs/evaluation.md lists the fields of each"
            " task"
        )
    return [own for own in examples if own]


def _classes(labelled: Sequence[LabelledImage]) -> tuple[str, ...]:
    return tuple(sorted({each.label for image in labelled for each in image.objects or ()}))


def _examples(
    entry: CatalogEntry, task_id: str, image: LabelledImage, asked: _Asked
) -> Iterator[Example]:
    """Yield an example for each prompt of a request."""
    try:
        if not isinstance(asked.truth, str):
            _check_labels(asked.truth)
        parameters = parse_parameters(TASKS[task_id], asked.values)
        prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, image.size_wh)
    except TaskError as error:
        raise TuningError(f"{image.path}: {error}") from error
    if isinstance(asked.truth, str):
        yield Example(image.path, prompts[0], _text(entry.family, asked.truth, image))
        return
    names = asked_per_prompt(parameters) if len(prompts) > 1 else ((),)
    for prompt, own in zip(prompts, names, strict=True):
        boxes = [each for each in asked.truth if not own or each.label in own]
        yield Example(image.path, prompt, _detections(entry.family, task_id, boxes, image.size_wh))


def _check_labels(boxes: Sequence[LabelledBox]) -> None:
    """Raise `ParameterError` for a label that a request for it could not have."""
    task = TASKS["open_vocabulary_detection"]
    for label in {each.label for each in boxes if each.label}:
        parse_parameters(task, {"labels": [label]})


def _text(family: Family, text: str, image: LabelledImage) -> Prompt:
    """Return a text; Florence-2 repeats the box of a region after it."""
    if image.region_xyxy is None or family != "florence2":
        return join_segments(PromptSegment(text))
    return join_segments(
        PromptSegment(text), _tokens(florence2_box_tokens(image.region_xyxy, image.size_wh))
    )


def _detections(
    family: Family, task_id: str, boxes: Sequence[LabelledBox], size_wh: tuple[int, int]
) -> Prompt:
    """Return labels before their locations (Florence-2), or after them and joined by ` ; `
    (PaliGemma).
    """
    segments: list[PromptSegment] = []
    for found in sorted(boxes, key=lambda each: each.box_xyxy[0] + each.box_xyxy[2]):
        if family == "florence2":
            # as in the prompt
            label = found.label if task_id == "object_detection" else without_article(found.label)
            segments += (
                PromptSegment(label),
                _tokens(florence2_box_tokens(found.box_xyxy, size_wh)),
            )
        else:
            joint = " ; " if segments else ""
            locations = _tokens(paligemma_box_tokens(found.box_xyxy, size_wh))
            segments += (PromptSegment(joint), locations, PromptSegment(f" {found.label}"))
    return join_segments(*segments)


def _tokens(text: str) -> PromptSegment:
    return PromptSegment(text, is_control=True)


def _captions(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    yield from (_Asked({}, caption) for caption in image.captions)


def _objects(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    if image.objects is not None:
        yield _Asked({}, image.objects)


def _regions(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    if image.objects is not None:
        yield _Asked({}, [LabelledBox("", each.box_xyxy) for each in image.objects])


def _named_objects(
    image: LabelledImage, classes: Sequence[str], rng: Generator
) -> Iterator[_Asked]:
    """Ask for the classes of an image and as many others, at least one: absent names must be left
    out of an answer.
    """
    if image.objects is None:
        return
    present = sorted({each.label for each in image.objects})[:MAX_LABELS]
    others = [name for name in classes if name not in present]
    num_others = min(len(others), max(1, len(present)), MAX_LABELS - len(present))
    asked = (
        [*present, *rng.choice(others, num_others, replace=False).tolist()]
        if num_others
        else present
    )
    rng.shuffle(asked)
    if asked:
        yield _Asked({"labels": asked}, [each for each in image.objects if each.label in asked])


def _phrases(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    names = list(dict.fromkeys(each.label for each in image.phrases))
    for start in range(0, len(names), MAX_LABELS):
        some = names[start : start + MAX_LABELS]
        yield _Asked({"phrases": some}, [each for each in image.phrases if each.label in some])


def _texts(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    if image.text is not None and image.region_xyxy is None:
        yield _Asked({}, image.text)


def _region_texts(
    image: LabelledImage, _classes: Sequence[str], _rng: Generator
) -> Iterator[_Asked]:
    if image.text is not None and image.region_xyxy is not None:
        yield _Asked({"region": list(image.region_xyxy)}, image.text)


def _answers(image: LabelledImage, _classes: Sequence[str], _rng: Generator) -> Iterator[_Asked]:
    """Ask each question; of several answers the most frequent is learnt."""
    for question, answers in image.questions:
        if answers:
            yield _Asked({"question": question}, Counter(answers).most_common(1)[0][0])


_ASKED: dict[str, Callable[[LabelledImage, Sequence[str], Generator], Iterator[_Asked]]] = {
    "captioning": _captions,
    "object_detection": _objects,
    "open_vocabulary_detection": _named_objects,
    "phrase_grounding": _phrases,
    "region_proposal": _regions,
    "ocr": _texts,
    "region_description": _region_texts,
    "visual_question_answering": _answers,
}
TUNED_TASKS = tuple(_ASKED)
