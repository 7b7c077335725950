"""Our parsers against transformers' own post-processor, on 2,000 answers: well-formed ones and
mutations of them.

Where ours differs on purpose (see tasks/florence2/parsing.py) the answer is recognized by its text
and left out.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

from tasks.florence2.parsing import parse_answer
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.answers import generated
from tests.support.catalog import FLORENCE, ROOT

NUM_ANSWERS = 2_000
IMAGE_WH = (643, 487)
LABELS = ["car", "a red circle", "the dog's ear", "grüner Käfer", "STOP, 24 h", "犬 dog", "x"]
CONTROL_TOKEN = re.compile(r"<loc_\d+>|<sep>|</?poly>")
LOCATION_RUN = re.compile(r"(?:<loc_\d+>)+")
CLOSED_INSTANCE = re.compile(r"<poly>(?:<loc_\d+>|<sep>)+</poly>")

# label, and the coordinates of its box, quad or polygons
Found = list[tuple[str, tuple[tuple[int, ...], ...]]]


def locations(rng: random.Random, num: int) -> list[str]:
    return [f"<loc_{rng.randrange(1000)}>" for _ in range(num)]


BANNED = frozenset(LABELS[:2])


def labelled_boxes(rng: random.Random) -> list[str]:
    phrases = (
        [rng.choice(LABELS), *locations(rng, 4 * rng.choice([1, 1, 1, 2, 3]))]
        for _ in range(rng.randint(1, 5))
    )
    return [piece for phrase in phrases for piece in phrase]


def bare_boxes(rng: random.Random) -> list[str]:
    return locations(rng, 4 * rng.randint(1, 6))


def quads(rng: random.Random) -> list[str]:
    return [
        piece
        for _ in range(rng.randint(1, 4))
        for piece in [rng.choice(LABELS), *locations(rng, 8)]
    ]


def polygons(rng: random.Random) -> list[str]:
    def instance() -> list[str]:
        rings = [locations(rng, 2 * rng.randint(3, 9)) for _ in range(rng.randint(1, 3))]
        return [piece for ring in rings for piece in ["<sep>", *ring]][1:]

    if rng.random() < 0.5:
        return instance()
    return [piece for _ in range(rng.randint(1, 3)) for piece in ["<poly>", *instance(), "</poly>"]]


BANNED = frozenset(LABELS[:2])


def labelled_boxes_or_polygons(rng: random.Random) -> list[str]:
    if rng.random() < 0.7:
        return labelled_boxes(rng)
    phrases = (
        [rng.choice(LABELS), "<poly>", *locations(rng, 2 * rng.randint(3, 9)), "</poly>"]
        for _ in range(2)
    )
    return [piece for phrase in phrases for piece in phrase]


def words(rng: random.Random) -> list[str]:
    return [" ", rng.choice(LABELS), " and ", rng.choice(LABELS), ".", " "]


def mutate(rng: random.Random, pieces: list[str]) -> list[str]:
    """Return the answer with a piece lost, doubled, moved, foreign, or the rest cut off."""
    place = rng.randrange(len(pieces))
    match rng.choice(["lose", "double", "move", "foreign", "cut", "cut"]):
        case "lose":
            return pieces[:place] + pieces[place + 1 :]
        case "double":
            return pieces[: place + 1] + pieces[place:]
        case "move":
            return pieces[place:] + pieces[:place]
        case "foreign":
            return [
                *pieces[:place],
                rng.choice([*LABELS, *locations(rng, 5), "<sep>", " "]),
                *pieces[place:],
            ]
        case _:
            return pieces[: place + 1]


def run_lengths(text: str) -> list[int]:
    return [run.group().count("<") for run in LOCATION_RUN.finditer(text)]


def has_uncommon_text(text: str) -> bool:
    """White space between tokens, which we skip."""
    return bool(re.search(r"(^|>)\s+(<|$)", text))


def is_proposal_difference(text: str) -> bool:
    """Tokens of other answers, at which the reference breaks."""
    return has_uncommon_text(text) or "<" in LOCATION_RUN.sub("", text)


def is_box_difference(text: str) -> bool:
    """Locations that belong to no box: the reference takes the last of them (`loc_5>`) into the
    next label.
    """
    has_stray = text.startswith("<") or any(length < 4 for length in run_lengths(text)[:-1])
    return is_proposal_difference(text) or has_stray


def is_open_vocabulary_difference(text: str) -> bool:
    """Those of boxes, or of polygons; a box without a label gets the label that was asked for."""
    return text.startswith("<") or (
        is_polygon_difference(text) if "<poly>" in text else is_box_difference(text)
    )


def is_quad_difference(text: str) -> bool:
    """Not eight locations: the reference takes them for the next text's beginning."""
    lengths = run_lengths(text)
    has_stray = any(length != 8 for length in lengths[:-1]) or any(
        length > 8 for length in lengths[-1:]
    )
    return is_proposal_difference(text) or text.startswith("<") or has_stray


def is_polygon_difference(text: str) -> bool:
    """Polygons of less than three points, and `<poly>` that is not closed or has text or polygons
    beside it.
    """
    is_uncommon = has_uncommon_text(text) or any(length < 6 for length in run_lengths(text))
    return is_uncommon or ("poly>" in text and "<" in CLOSED_INSTANCE.sub("", text))


def is_text_difference(text: str) -> bool:
    """Control tokens, which we leave out."""
    return bool(CONTROL_TOKEN.search(text))


@dataclass(frozen=True)
class Case:
    """A task, answers to it, and what tells a known difference."""

    task_id: str
    values: dict[str, Any]
    reference_type: str
    make: Callable[[random.Random], list[str]]
    is_known_difference: Callable[[str], bool]


CASES = [
    Case("object_detection", {}, "description_with_bboxes", labelled_boxes, is_box_difference),
    Case(
        "dense_region_captioning", {}, "description_with_bboxes", labelled_boxes, is_box_difference
    ),
    Case(
        "phrase_grounding", {"caption": "?"}, "phrase_grounding", labelled_boxes, is_box_difference
    ),
    Case("region_proposal", {}, "bboxes", bare_boxes, is_proposal_difference),
    Case("ocr_with_regions", {}, "ocr", quads, is_quad_difference),
    Case("instance_segmentation", {"phrase": "?"}, "polygons", polygons, is_polygon_difference),
    Case("captioning", {}, "pure_text", words, is_text_difference),
    Case(
        # open vocabulary detection is read alike, but keeps only what was asked for
        "phrase_grounding",
        {"caption": "?"},
        "description_with_bboxes_or_polygons",
        labelled_boxes_or_polygons,
        is_open_vocabulary_difference,
    ),
]


@pytest.fixture(scope="module")
def post_processor() -> Florence2PostProcessor:
    config: dict[str, dict[str, Any]] = {case.reference_type: {} for case in CASES}
    config["phrase_grounding"] = {"banned_grounding_tokens": sorted(BANNED)}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / FLORENCE.source)
    return Florence2PostProcessor(config, tokenizer)  # type: ignore[no-untyped-call]


def test_our_parsers_read_what_transformers_reads(post_processor: Florence2PostProcessor) -> None:
    rng = random.Random(20240607)
    num_compared: Counter[str] = Counter()
    for index in range(NUM_ANSWERS):
        case = CASES[index % len(CASES)]
        pieces = case.make(rng)
        text = "".join(pieces if rng.random() < 0.5 else mutate(rng, pieces))
        if not case.is_known_difference(text):
            num_compared[case.reference_type] += 1
            assert ours(case, text) == reference(post_processor, case, text), (case.task_id, text)
    assert num_compared.total() > 0.8 * NUM_ANSWERS
    assert all(
        num_compared[case.reference_type] > 0.6 * NUM_ANSWERS / len(CASES) for case in CASES
    ), num_compared


def ours(case: Case, text: str) -> Found | str:
    parameters = parse_parameters(TASKS[case.task_id], case.values)
    banned = BANNED if case.reference_type == "phrase_grounding" else frozenset()
    result: Any = parse_answer(
        FLORENCE, case.task_id, parameters, [generated(text)], IMAGE_WH, "polygon", None, banned
    )
    match TASKS[case.task_id].result_kind:
        case "text":
            return str(result.text)
        case "detections":
            return [(ascii_only(each.label), (truncated(each.box),)) for each in result.detections]
        case "text_regions":
            return [(each.text, (flat(each.quad),)) for each in result.text_regions]
        case _:
            return [("", tuple(map(flat, each.polygons))) for each in result.instances]


def reference(post_processor: Florence2PostProcessor, case: Case, text: str) -> Found | str:
    def call(image_size: tuple[int, int]) -> Any:
        return post_processor(text=text, image_size=image_size, parse_tasks=case.reference_type)[
            case.reference_type
        ]

    if case.reference_type == "pure_text":
        return str(call(IMAGE_WH)).strip()
    bins = call((1000, 1000))  # each position is its bin: tells which boxes have an area
    return [
        as_found(case, instance)
        for instance, of_bins in zip(unfolded(call(IMAGE_WH)), unfolded(bins), strict=True)
        if case.reference_type == "ocr" or has_area(of_bins)
    ]


def unfolded(instances: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one instance for each box; phrase grounding has a list of boxes in each."""
    return [
        instance | {"bbox": box}
        for instance in instances
        for box in (
            instance["bbox"]
            if instance.get("bbox") and isinstance(instance["bbox"][0], list)
            else [instance.get("bbox")]
        )
    ]


def has_area(instance: dict[str, Any]) -> bool:
    coordinates = instance["bbox"] or [each for ring in instance["polygons"] for each in ring]
    return len(set(coordinates[0::2])) > 1 and len(set(coordinates[1::2])) > 1


def as_found(case: Case, instance: dict[str, Any]) -> tuple[str, tuple[tuple[int, ...], ...]]:
    if case.reference_type == "ocr":
        return instance["text"], (tuple(instance["quad_box"]),)
    if case.reference_type == "polygons":
        return "", tuple(map(tuple, instance["polygons"]))
    coordinates = instance["bbox"] or [each for ring in instance["polygons"] for each in ring]
    xs = coordinates[0::2]
    ys = coordinates[1::2]
    return ascii_only(instance["cat_name"]), ((min(xs), min(ys), max(xs), max(ys)),)


def ascii_only(label: str) -> str:
    return label.encode("ascii", "ignore").decode("ascii")


def truncated(coordinates: Sequence[float]) -> tuple[int, ...]:
    return tuple(map(int, coordinates))


def flat(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    return truncated([coordinate for point in points for coordinate in point])
