"""Florence-2's answers as typed results.

The reference is Microsoft's processor, and transformers' port of it (Florence2PostProcessor in
models/florence2/processing_florence2.py). This parser differs from it in five ways, which
tests/tasks/florence2/test_parsing_reference.py counts:

| answer | the reference | here, and why |
|---|---|---|
| a region's text, then its box | keeps the box's tokens | drops them: the request has the box |
| a newline in a label | drops the object | keeps it: an object is found, whatever its label |
| fewer locations than a box, then a label | `loc_5>wheel` | `wheel`: the rest is of a token |
| a polygon of one or two points | keeps it | drops it: it has no area |
| location tokens in a caption | keeps them | drops them: a caption is text |

It also keeps non-ASCII characters and '<' in labels, fractions of pixels, and polygons without a
closing `</poly>`; it sorts a box's corners, and drops boxes without area. `raw_text` has it all.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

from tasks.catalog import CatalogEntry
from tasks.florence2.grammar import (
    Phrase,
    dequantize,
    split_phrases,
    text_before_tokens,
    text_without_tokens,
)
from tasks.florence2.prompts import asked_per_prompt
from tasks.parsing import (
    GeneratedText,
    Locations,
    in_pieces,
    read_objects,
    resolve_label,
    span_of,
)
from tasks.results import (
    Detection,
    FoundObject,
    Instance,
    MaskFormat,
    Result,
    Ring,
    TextRegion,
    TextResult,
    bounding_box,
)
from tasks.run_length import encode_rings
from tasks.table import TASKS, TaskParameters

_MIN_POLYGON_LOCATIONS = 6  # three points


def parse_answer(
    entry: CatalogEntry,
    task_id: str,
    parameters: TaskParameters,
    answers: Sequence[GeneratedText],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
    mask_decoder: object,  # noqa: ARG001  # PaliGemma's; this family writes polygons
    banned_phrases: frozenset[str] = frozenset(),
) -> Result:
    """Return the typed result of the answers; banned phrases of a caption have no boxes."""
    kind = TASKS[task_id].result_kind
    if kind == "text":
        read_text = text_without_tokens if parameters.region is None else text_before_tokens
        text = read_text(answers[0].text)
        return TextResult(text, answers[0].is_read_as(text))

    def read(answer: GeneratedText, names: Sequence[str]) -> Iterator[FoundObject]:
        if kind == "detections":
            return _detections(answer, names, task_id != "region_proposal", image_size_wh)
        if kind == "instances":
            return _instances(answer, names, image_size_wh, mask_format)
        return _text_regions(answer, image_size_wh)

    banned = frozenset() if parameters.caption is None else banned_phrases
    names_per_prompt = asked_per_prompt(parameters)
    return read_objects(kind, answers, names_per_prompt, read, entry.forced_names, banned)


def read_banned_phrases(processor_config: Path) -> frozenset[str]:
    """Return the phrases whose boxes a checkpoint's processor removes in a grounded caption."""
    if not processor_config.exists():
        return frozenset()
    config = json.loads(processor_config.read_text(encoding="utf-8"))
    tasks = config.get("post_processor_config") or {}
    return frozenset(tasks.get("phrase_grounding", {}).get("banned_grounding_tokens", ()))


def _detections(
    answer: GeneratedText, names: Sequence[str], is_named: bool, image_size_wh: tuple[int, int]
) -> Iterator[Detection]:
    """Yield boxes of two corners, or around polygons; named ones without a name are dropped."""
    is_polygon = "<poly>" in answer.text
    for phrase in split_phrases(answer.text):
        label = resolve_label(phrase.label, names) if is_named else ""
        if is_named and not label:
            continue
        polygons = [*filter(None, map(_polygons, phrase.instances))]
        corners = [[piece] for piece in _pieces(phrase, 4)]
        for runs in polygons if is_polygon else corners:
            rings = [_ring(run, image_size_wh) for run in runs]
            if box := bounding_box(chain(*rings)):
                spans = phrase.label_spans if is_named else ()
                yield Detection(box, label, answer.score(spans, list(map(span_of, runs))))


def _instances(
    answer: GeneratedText,
    names: Sequence[str],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
) -> Iterator[Instance]:
    for phrase in split_phrases(answer.text):
        for polygons in filter(None, map(_polygons, phrase.instances)):
            rings = tuple(_ring(polygon, image_size_wh) for polygon in polygons)
            if box := bounding_box(chain(*rings)):
                score = answer.score(phrase.label_spans, list(map(span_of, polygons)))
                label = resolve_label(phrase.label, names)
                mask = encode_rings(rings, image_size_wh) if mask_format == "rle" else None
                yield Instance(box, label, score, rings if mask is None else None, mask)


def _text_regions(answer: GeneratedText, image_size_wh: tuple[int, int]) -> Iterator[TextRegion]:
    for phrase in split_phrases(answer.text):
        for piece in _pieces(phrase, 8) if phrase.label else ():
            top_left, top_right, bottom_right, bottom_left = _ring(piece, image_size_wh)
            quad = (top_left, top_right, bottom_right, bottom_left)
            score = answer.score(phrase.label_spans, [span_of(piece)])
            yield TextRegion(quad, phrase.label, score)


def _pieces(phrase: Phrase, num_locations: int) -> Iterator[Locations]:
    """Yield the locations of a phrase in pieces, without an incomplete last one of a run."""
    for run in chain(*phrase.instances):
        yield from in_pieces(run, num_locations)


def _polygons(instance: Sequence[Locations]) -> list[Locations]:
    """Return the runs of an instance that are polygons, without an incomplete last point."""
    return [run[: len(run) // 2 * 2] for run in instance if len(run) >= _MIN_POLYGON_LOCATIONS]


def _ring(locations: Locations, image_size_wh: tuple[int, int]) -> Ring:
    width, height = image_size_wh
    xs = (dequantize(location.bin_index, width) for location in locations[0::2])
    ys = (dequantize(location.bin_index, height) for location in locations[1::2])
    return tuple(zip(xs, ys, strict=True))
