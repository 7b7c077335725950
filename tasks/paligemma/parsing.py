"""PaliGemma's answers as typed results.

Corners are sorted. Boxes without area and instances without 16 segmentation tokens are dropped.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasks.catalog import CatalogEntry
from tasks.paligemma.grammar import split_entries, text_without_tokens
from tasks.paligemma.locations import dequantize
from tasks.paligemma.masks import NUM_CODES, MaskDecoder, mask_in_image, rings_in_box
from tasks.paligemma.prompts import asked_per_prompt
from tasks.parameters import TaskParameters
from tasks.parsing import (
    GeneratedText,
    Locations,
    in_pieces,
    named_as_requested,
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
    entry: CatalogEntry,
    task_id: str,
    parameters: TaskParameters,
    answers: Sequence[GeneratedText],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
    mask_decoder: MaskDecoder | None,
    banned_phrases: frozenset[str] = frozenset(),  # noqa: ARG001  # Florence-2's
) -> Result:
    """Return the typed result of the answers to `task_prompts`; instances need a mask decoder."""
    names_per_prompt = asked_per_prompt(entry, task_id, parameters)
    is_parsed = True
    match TASKS[task_id].result_kind:
        case "text":
            text = text_without_tokens(answers[0].text)
            return TextResult(text, answers[0].is_read_as(text))
        case "detections":
            # a prompt with all names may be about phrases that the answer shortens
            is_strict = entry.forced_names and (bool(parameters.labels) or len(answers) > 1)
            detections: list[Detection] = []
            for answer, names in zip(answers, names_per_prompt, strict=True):
                written = tuple(_detections(answer, names, image_size_wh))
                is_parsed &= answer.is_read_as(written)
                detections += named_as_requested(written, names if is_strict else ())
            return DetectionsResult(tuple(detections), is_parsed)
        case "instances" if mask_decoder is not None:
            instances: list[Instance] = []
            for answer, names in zip(answers, names_per_prompt, strict=True):
                masks = _Masks(mask_decoder, mask_format, image_size_wh)
                segmented = tuple(_instances(answer, names, masks))
                is_parsed &= answer.is_read_as(segmented)
                instances += segmented
            return InstancesResult(tuple(instances), is_parsed)
        case _:
            message = f"PaliGemma has no parser for answers to {task_id} without a mask decoder"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class _Masks:
    """How the masks of an answer are made."""

    decoder: MaskDecoder
    mask_format: MaskFormat
    image_size_wh: tuple[int, int]


def _detections(
    answer: GeneratedText, names: Sequence[str], image_size_wh: tuple[int, int]
) -> Iterator[Detection]:
    for entry in split_entries(answer.text):
        for corners in in_pieces(entry.locations, 4):
            if box := _box(corners, image_size_wh):
                score = answer.score(entry.label_spans, [span_of(corners)])
                yield Detection(box, resolve_label(entry.label, names), score)


def _instances(answer: GeneratedText, names: Sequence[str], masks: _Masks) -> Iterator[Instance]:
    size_wh = masks.image_size_wh
    for entry in split_entries(answer.text):
        box = _box(entry.locations, size_wh) if len(entry.locations) == 4 else None
        if box is None or len(entry.codes) < NUM_CODES:
            continue
        field = masks.decoder.decode(entry.codes[:NUM_CODES])
        is_mask = masks.mask_format == "rle"
        yield Instance(
            box,
            resolve_label(entry.label, names),
            answer.score(entry.label_spans, [span_of(entry.locations)]),
            polygons=None if is_mask else rings_in_box(field, box),
            mask=encode_mask(mask_in_image(field, box, size_wh)) if is_mask else None,
        )


def _box(locations: Locations, image_size_wh: tuple[int, int]) -> BoxXyxy | None:
    width, height = image_size_wh
    sides = (height, width, height, width)
    places = zip(locations, sides, strict=True)
    y1, x1, y2, x2 = (dequantize(location.bin_index, side) for location, side in places)
    return ordered_box(x1, y1, x2, y2)
