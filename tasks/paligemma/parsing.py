"""PaliGemma's answers as typed results.

Corners are sorted. Boxes without area and instances without 16 segmentation tokens are dropped.
"""

from collections.abc import Iterator, Sequence
from functools import partial

from tasks import results
from tasks.paligemma.grammar import dequantize, split_entries, text_without_tokens
from tasks.paligemma.masks import NUM_CODES, mask_in_image, rings_in_box
from tasks.paligemma.prompts import asked_per_prompt
from tasks.parsing import (
    AnsweredTask,
    GeneratedText,
    Locations,
    in_pieces,
    read_objects,
    resolve_label,
)
from tasks.table import TASKS


def parse_answer(task: AnsweredTask, answers: Sequence[GeneratedText]) -> results.Result:
    """Return the typed result; instances need a mask decoder."""
    kind = TASKS[task.task_id].result_kind
    if kind == "text":
        text = text_without_tokens(answers[0].text)
        return results.TextResult(text, is_parsed=bool(text) or not answers[0].text.strip())

    read = partial(_detections if kind == "detections" else _instances, task)
    # a prompt with all names may be about phrases that the answer shortens
    is_strict = task.entry.forced_names and (bool(task.parameters.labels) or len(answers) > 1)
    names_per_prompt = asked_per_prompt(task.entry, task.task_id, task.parameters)
    return read_objects(kind, answers, names_per_prompt, read, is_strict)


def _detections(
    task: AnsweredTask, answer: GeneratedText, names: Sequence[str]
) -> Iterator[results.FoundObject]:
    for entry in split_entries(answer.text):
        for corners in in_pieces([entry.locations], 4):
            if box := _box(corners, task.image_size_wh):
                score = answer.score(entry.label_spans, [corners])
                yield results.Detection(box, resolve_label(entry.label, names), score)


def _instances(
    task: AnsweredTask, answer: GeneratedText, names: Sequence[str]
) -> Iterator[results.FoundObject]:
    size_wh = task.image_size_wh
    if task.mask_decoder is None:
        raise ValueError(f"PaliGemma cannot parse answers to {task.task_id} without a mask decoder")
    for entry in split_entries(answer.text):
        box = _box(entry.locations, size_wh) if len(entry.locations) == 4 else None
        if box is None or len(entry.codes) < NUM_CODES:
            continue
        field = task.mask_decoder.decode(entry.codes[:NUM_CODES])
        label = resolve_label(entry.label, names)
        score = answer.score(entry.label_spans, [entry.locations])
        if task.mask_format == "rle":
            mask = mask_in_image(field, box, size_wh)
            yield results.Instance(box, label, score, polygons=None, mask=mask)
        else:
            yield results.Instance(box, label, score, rings_in_box(field, box), mask=None)


def _box(locations: Locations, image_size_wh: tuple[int, int]) -> results.BoxXyxy | None:
    width, height = image_size_wh
    places = zip(locations, (height, width, height, width), strict=True)
    y1, x1, y2, x2 = (dequantize(location.bin_index, side) for location, side in places)
    return results.bounding_box(((x1, y1), (x2, y2)))
