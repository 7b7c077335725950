"""Florence-2's answers as typed results.

The reference is Microsoft's processor, and transformers' port of it (Florence2PostProcessor in
models/florence2/processing_florence2.py). This parser differs from it in seven ways, which
tests/tasks/florence2/test_parsing_reference.py shows:

| answer | the reference | here, and why |
|---|---|---|
| a region's text, then its box | keeps the box's tokens | drops them: the request has the box |
| a newline in a label | drops the object | keeps it: an object is found, whatever its label |
| fewer locations than a box, then a label | `loc_5>wheel` | `wheel`: the rest is of a token |
| locations before the first label | a label such as `loc_5>` | not parsed: no label is known |
| a mask's polygon of one or two points | keeps it | drops it: it has no area |
| boxes beside `<poly>` outlines | reads them as points | keeps each: they are boxes |
| location tokens in a caption | keeps them | drops them: a caption is text |

It also keeps non-ASCII characters and '<' in labels, fractions of pixels, and polygons without a
closing `</poly>`; it sorts a box's corners, and drops boxes without area. `raw_text` has it all.
An answer whose boxes or quads have no label where the task has labels is not parsed, though those
with a label are returned.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from tasks import results
from tasks.florence2.grammar import (
    Instance,
    dequantize,
    split_phrases,
    text_before_tokens,
    text_without_tokens,
)
from tasks.florence2.prompts import asked_per_prompt
from tasks.parsing import (
    AnsweredTask,
    GeneratedText,
    Locations,
    in_pieces,
    read_objects,
    resolve_label,
)
from tasks.run_length import encode_rings
from tasks.table import TASKS

_MIN_POLYGON_LOCATIONS = 6  # three points
_MIN_BOX_LOCATIONS = 4  # two corners


def parse_answer(task: AnsweredTask, answers: Sequence[GeneratedText]) -> results.Result:
    parameters = task.parameters
    kind = TASKS[task.task_id].result_kind
    if kind == "text":
        read_text = text_without_tokens if parameters.region is None else text_before_tokens
        text = read_text(answers[0].text)
        return results.TextResult(text, is_parsed=bool(text) or not answers[0].text.strip())
    readers = {"detections": _detections, "instances": _instances, "text_regions": _text_regions}
    read = partial(readers[kind], task)
    banned = frozenset() if parameters.caption is None else task.banned_phrases
    names_per_prompt = asked_per_prompt(parameters)
    return read_objects(kind, answers, names_per_prompt, read, task.entry.forced_names, banned)


def read_banned_phrases(processor_config: Path) -> frozenset[str]:
    """Return the phrases whose boxes a checkpoint's processor removes in a grounded caption."""
    if not processor_config.exists():
        return frozenset()
    config = json.loads(processor_config.read_text(encoding="utf-8"))
    tasks = config.get("post_processor_config") or {}
    return frozenset(tasks.get("phrase_grounding", {}).get("banned_grounding_tokens", ()))


def _detections(
    task: AnsweredTask, answer: GeneratedText, names: Sequence[str]
) -> Iterator[results.FoundObject | None]:
    """Yield boxes of two corners, or around polygons; None for one without its label."""
    is_named = task.task_id != "region_proposal"
    for phrase in split_phrases(answer.text):
        label = phrase.label if is_named else ""
        if is_named and names:
            label = resolve_label(label, names)
        spans = phrase.label_spans if is_named else ()
        for runs in _box_runs(phrase.instances):
            rings = [dequantize(run, task.image_size_wh) for run in runs]
            box = results.bounding_box(chain(*rings))
            if is_named and not label:
                yield None
            elif box is not None:
                yield results.Detection(box, label, answer.score(spans, runs))


def _instances(
    task: AnsweredTask, answer: GeneratedText, names: Sequence[str]
) -> Iterator[results.FoundObject]:
    size_wh = task.image_size_wh
    for phrase in split_phrases(answer.text):
        for polygons in _polygons(phrase.instances, _MIN_POLYGON_LOCATIONS):
            rings = tuple(dequantize(polygon, size_wh) for polygon in polygons)
            if box := results.bounding_box(chain(*rings)):
                score = answer.score(phrase.label_spans, polygons)
                label = resolve_label(phrase.label, names)
                mask = encode_rings(rings, size_wh) if task.mask_format == "rle" else None
                yield results.Instance(box, label, score, rings if mask is None else None, mask)


def _text_regions(
    task: AnsweredTask, answer: GeneratedText, _names: Sequence[str]
) -> Iterator[results.FoundObject | None]:
    """Yield texts with their quads; None for a quad without a text."""
    for phrase in split_phrases(answer.text):
        runs = chain.from_iterable(instance.runs for instance in phrase.instances)
        for piece in in_pieces(runs, 8):
            if not phrase.label:
                yield None
                continue
            top_left, top_right, bottom_right, bottom_left = dequantize(piece, task.image_size_wh)
            quad = (top_left, top_right, bottom_right, bottom_left)
            yield results.TextRegion(quad, phrase.label, answer.score(phrase.label_spans, [piece]))


def _box_runs(instances: Iterable[Instance]) -> Iterator[Sequence[Locations]]:
    """Yield the locations of each box: two corners, or the polygons that it encloses."""
    for instance in instances:
        if instance.is_outline:
            yield from _polygons([instance], _MIN_BOX_LOCATIONS)
        else:
            for corners in in_pieces(instance.runs, _MIN_BOX_LOCATIONS):
                yield [corners]


def _polygons(instances: Iterable[Instance], min_locations: int) -> list[list[Locations]]:
    """Return the runs of each instance that are long enough, without an incomplete last point."""
    outlines: list[list[Locations]] = []
    for instance in instances:
        polygons = [run for run in instance.runs if len(run) >= min_locations]
        if polygons:
            outlines.append([run[: len(run) // 2 * 2] for run in polygons])
    return outlines
