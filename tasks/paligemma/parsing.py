"""PaliGemma's answers as typed results.

Corners are sorted. Boxes without area and instances without 16 segmentation tokens are dropped.
"""

from collections.abc import Iterator, Sequence

from tasks.generation import GeneratedText
from tasks.paligemma.grammar import split_entries, text_without_tokens
from tasks.paligemma.locations import dequantize
from tasks.paligemma.mask_placement import mask_in_image, rings_in_box
from tasks.paligemma.masks import NUM_CODES, MaskDecoder
from tasks.paligemma.prompts import asked_names
from tasks.parameters import TaskParameters
from tasks.parsing import (
    Locations,
    answers_to_labels,
    in_pieces,
    ordered_box,
    resolve_label,
    span_of,
)
from tasks.results import (
    BoxXyxy,
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    MaskFormat,
    Result,
    TextResult,
)
from tasks.run_length import encode_mask
from tasks.table import TASKS


def parse_answer(
    task_id: str,
    parameters: TaskParameters,
    answers: Sequence[GeneratedText],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
    mask_decoder: MaskDecoder | None,
    banned_phrases: frozenset[str] = frozenset(),  # noqa: ARG001  # Florence-2's
) -> Result:
    """Return the typed result of the answers to `task_prompts`; instances need a mask decoder."""
    answer = answers[0]
    asked = asked_names(parameters)
    match TASKS[task_id].result_kind:
        case "text":
            text = text_without_tokens(answer.text)
            return TextResult(text, answer.is_read_as(text))
        case "detections":
            per_prompt = [asked] if len(answers) == 1 else [(name,) for name in asked]
            is_strict = bool(parameters.labels) or len(answers) > 1
            is_parsed = True
            kept: list[Detection] = []
            for each, names in zip(answers, per_prompt, strict=True):
                found = tuple(_detections(each, names, image_size_wh))
                is_parsed &= each.is_read_as(found)
                kept += answers_to_labels(found, names if is_strict else ())
            return DetectionsResult(tuple(kept), is_parsed)
        case "instances" if mask_decoder is not None:
            instances = tuple(_instances(answer, asked, image_size_wh, mask_format, mask_decoder))
            return InstancesResult(instances, answer.is_read_as(instances))
        case _:
            message = f"PaliGemma has no parser for answers to {task_id} without a mask decoder"
            raise ValueError(message)


def _detections(
    answer: GeneratedText, asked: Sequence[str], image_size_wh: tuple[int, int]
) -> Iterator[Detection]:
    for entry in split_entries(answer.text):
        for piece in in_pieces(entry.locations, 4):
            if box := _box(piece, image_size_wh):
                score = answer.score(entry.label_spans, [span_of(piece)])
                yield Detection(box, resolve_label(entry.label, asked), score)


def _instances(
    answer: GeneratedText,
    asked: Sequence[str],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
    mask_decoder: MaskDecoder,
) -> Iterator[Instance]:
    for entry in split_entries(answer.text):
        box = _box(entry.locations, image_size_wh) if len(entry.locations) == 4 else None
        if box is None or len(entry.codes) < NUM_CODES:
            continue
        field = mask_decoder.decode(entry.codes[:NUM_CODES])
        is_mask = mask_format == "rle"
        yield Instance(
            box,
            resolve_label(entry.label, asked),
            answer.score(entry.label_spans, [span_of(entry.locations)]),
            polygons=None if is_mask else rings_in_box(field, box),
            mask=encode_mask(mask_in_image(field, box, image_size_wh)) if is_mask else None,
        )


def _box(locations: Locations, image_size_wh: tuple[int, int]) -> BoxXyxy | None:
    width, height = image_size_wh
    sides = (height, width, height, width)
    places = zip(locations, sides, strict=True)
    y1, x1, y2, x2 = (dequantize(location.bin_index, side) for location, side in places)
    return ordered_box(x1, y1, x2, y2)
