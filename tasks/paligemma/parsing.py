"""PaliGemma's answers as typed results.

Corners are sorted. Boxes without area and instances without 16 segmentation tokens are dropped.
"""

from collections.abc import Iterator, Sequence

from tasks.catalog import CatalogEntry
from tasks.paligemma.grammar import dequantize, split_entries, text_without_tokens
from tasks.paligemma.masks import NUM_CODES, MaskDecoder, mask_in_image, rings_in_box
from tasks.paligemma.prompts import asked_per_prompt
from tasks.parsing import (
    GeneratedText,
    Locations,
    in_pieces,
    read_objects,
    resolve_label,
)
from tasks.results import (
    BoxXyxy,
    Detection,
    FoundObject,
    Instance,
    MaskFormat,
    Result,
    TextResult,
    bounding_box,
)
from tasks.table import TASKS, TaskParameters


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
    kind = TASKS[task_id].result_kind
    if kind == "text":
        text = text_without_tokens(answers[0].text)
        return TextResult(text, is_parsed=bool(text) or not answers[0].text.strip())

    def read(answer: GeneratedText, names: Sequence[str]) -> Iterator[FoundObject]:
        if kind == "detections":
            return _detections(answer, names, image_size_wh)
        if kind == "instances" and mask_decoder is not None:
            return _instances(answer, names, image_size_wh, mask_format, mask_decoder)
        raise ValueError(f"PaliGemma cannot parse answers to {task_id} without a mask decoder")

    # a prompt with all names may be about phrases that the answer shortens
    is_strict = entry.forced_names and (bool(parameters.labels) or len(answers) > 1)
    names_per_prompt = asked_per_prompt(entry, task_id, parameters)
    return read_objects(kind, answers, names_per_prompt, read, is_strict)


def _detections(
    answer: GeneratedText, names: Sequence[str], image_size_wh: tuple[int, int]
) -> Iterator[Detection]:
    for entry in split_entries(answer.text):
        for corners in in_pieces([entry.locations], 4):
            if box := _box(corners, image_size_wh):
                score = answer.score(entry.label_spans, [corners])
                yield Detection(box, resolve_label(entry.label, names), score)


def _instances(
    answer: GeneratedText,
    names: Sequence[str],
    image_size_wh: tuple[int, int],
    mask_format: MaskFormat,
    mask_decoder: MaskDecoder,
) -> Iterator[Instance]:
    for entry in split_entries(answer.text):
        box = _box(entry.locations, image_size_wh) if len(entry.locations) == 4 else None
        if box is None or len(entry.codes) < NUM_CODES:
            continue
        field = mask_decoder.decode(entry.codes[:NUM_CODES])
        label = resolve_label(entry.label, names)
        score = answer.score(entry.label_spans, [entry.locations])
        if mask_format == "rle":
            mask = mask_in_image(field, box, image_size_wh)
            yield Instance(box, label, score, polygons=None, mask=mask)
        else:
            yield Instance(box, label, score, rings_in_box(field, box), mask=None)


def _box(locations: Locations, image_size_wh: tuple[int, int]) -> BoxXyxy | None:
    width, height = image_size_wh
    sides = (height, width, height, width)
    places = zip(locations, sides, strict=True)
    y1, x1, y2, x2 = (dequantize(location.bin_index, side) for location, side in places)
    return bounding_box(((x1, y1), (x2, y2)))
