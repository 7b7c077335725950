"""Our parser against transformers' port of Microsoft's processor.

The two differ in the seven ways of the table in tasks/florence2/parsing.py alone.
Microsoft's own code agrees with the port on 4,000 answers (processing_florence2.py as in
silveroxides/ComfyUI-Florence2; whole pixels, region proposals left out, which that copy breaks).
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

from tasks.florence2.parsing import parse_answer
from tasks.parsing import AnsweredTask
from tasks.results import Detection, Instance, Result, TextRegion, TextResult
from tasks.table import TASKS, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import RELEASED, ROOT

NUM_ANSWERS = 1_600
IMAGE_WH = (643, 487)
LABELS = ["car", "a red circle", "the dog's ear", "grüner Käfer", "STOP, 24 h", "犬 dog"]
BANNED = frozenset(LABELS[:2])
Objects = list[tuple[str, list[int]]]  # label and coordinates, in whole pixels


@dataclass(frozen=True)
class Case:
    """A task, and its type in the reference."""

    task_id: str
    reference_type: str
    values: dict[str, Any]
    locations_of_object: int = 4


REGION = {"region": [1, 2, 30, 40]}
CASES = [
    Case("object_detection", "description_with_bboxes", {}),
    Case("dense_region_captioning", "description_with_bboxes", {}),
    Case("phrase_grounding", "phrase_grounding", {"caption": "?"}),
    Case("region_proposal", "bboxes", {}),
    Case("ocr_with_regions", "ocr", {}, locations_of_object=8),
    Case("instance_segmentation", "polygons", {"phrase": "?"}),
    Case("phrase_grounding", "description_with_bboxes_or_polygons", {"caption": "?"}),
    Case("captioning", "pure_text", {}),
    Case("region_description", "pure_text", REGION),
]


def written_answer(case: Case, rng: random.Random) -> str:
    """Return a random answer in the form of a task; some are cut off."""
    pieces: list[str] = []
    for _ in range(rng.randint(1, 4)):
        if case.task_id == "instance_segmentation":
            pieces += [*locations(rng, 2 * rng.randint(3, 9)), "<sep>"]
        elif case.reference_type == "pure_text":
            pieces += [rng.choice(LABELS), " "]
        else:
            is_labelled = case.task_id != "region_proposal"
            pieces += [rng.choice(LABELS)] * is_labelled + locations(rng, case.locations_of_object)
    if case.reference_type == "description_with_bboxes_or_polygons" and rng.random() < 0.5:
        outlines = ["".join(locations(rng, number)) for number in (8, 6)]
        return f"car<poly>{outlines[0]}</poly>a b<poly>{outlines[1]}</poly>"
    if pieces[-1] == "<sep>":
        del pieces[-1]
    elif rng.random() < 0.3:
        del pieces[rng.randrange(len(pieces)) + 1 :]
    return "".join(pieces)


def locations(rng: random.Random, number: int) -> list[str]:
    return [f"<loc_{rng.randrange(1000)}>" for _ in range(number)]


@pytest.fixture(scope="module")
def post_processor() -> Florence2PostProcessor:
    config: dict[str, dict[str, Any]] = {case.reference_type: {} for case in CASES}
    config["phrase_grounding"] = {"banned_grounding_tokens": sorted(BANNED)}
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "florence-2-mini")
    return Florence2PostProcessor(config, tokenizer)  # type: ignore[no-untyped-call]


def test_random_answers(post_processor: Florence2PostProcessor) -> None:
    rng = random.Random(20240607)
    for index in range(NUM_ANSWERS):
        case = CASES[index % (len(CASES) - 1)]  # the last one differs
        text = written_answer(case, rng)
        assert ours(case, text) == reference(post_processor, case, text), (case.task_id, text)


@pytest.mark.parametrize("index", [0, 1, 2, 4])
def test_an_answer_with_fewer_boxes_is_not_parsed(
    post_processor: Florence2PostProcessor, index: int
) -> None:
    """Locations of any number before, between and after labels, as no grammar allows."""
    case = CASES[index]
    rng = random.Random(index)
    num_fewer = 0
    for _ in range(1_000):
        pieces: list[str] = []
        for _ in range(rng.randint(1, 6)):
            pieces += locations(rng, rng.choice([0, 1, 3, 4, 5, 8, 9, 12]))
            pieces.append(rng.choice(["", " ", "wheel", " a dog ", "</od>"]))
        text = "".join(pieces)
        result = answered(case, text)
        if len(ours(case, text)) < len(reference(post_processor, case, text)):
            num_fewer += 1
            assert not result.is_parsed, text
    assert num_fewer > 100


BOX = "<loc_1><loc_2><loc_3><loc_4>"
BOX_PX = [0, 1, 2, 2]
LATER_PX = [1, 1, 2, 2]  # one location later
TRIANGLE = f"{BOX}<loc_5><loc_6>"
TRIANGLE_PX = [*BOX_PX, 3, 3]


@pytest.mark.parametrize(
    ("index", "text", "expected", "of_reference"),
    [
        (8, f"dog{BOX}", "dog", f"dog{BOX}"),
        (0, f"a\nb{BOX}dog{BOX}", [("a b", BOX_PX), ("dog", BOX_PX)], [("dog", BOX_PX)]),
        (0, f"car<loc_5>dog{BOX}", [("dog", BOX_PX)], [("loc_5>dog", BOX_PX)]),
        (5, f"{TRIANGLE}<sep>{BOX}", [("", TRIANGLE_PX)], [("", TRIANGLE_PX), ("", BOX_PX)]),
        (7, f"dog{BOX}", "dog", f"dog{BOX}"),
        (0, f"{BOX}<loc_5>dog{BOX}", [("dog", BOX_PX)], [("loc_1>", LATER_PX), ("dog", BOX_PX)]),
        (
            6,
            f"car{BOX}{BOX}a<poly>{TRIANGLE}</poly>",
            [("car", BOX_PX), ("car", BOX_PX), ("a", [0, 1, 3, 3])],
            [("car", BOX_PX), ("a", [0, 1, 3, 3])],
        ),
    ],
)
def test_differences_from_the_reference(
    post_processor: Florence2PostProcessor, index: int, text: str, expected: Any, of_reference: Any
) -> None:
    """Each row of the table in tasks/florence2/parsing.py."""
    assert ours(CASES[index], text) == expected
    assert reference(post_processor, CASES[index], text) == of_reference


def answered(case: Case, text: str) -> Result:
    parameters = parse_parameters(TASKS[case.task_id], case.values)
    banned = BANNED if case.reference_type == "phrase_grounding" else frozenset()
    entry = RELEASED["florence2"]
    task = AnsweredTask(entry, case.task_id, parameters, IMAGE_WH, banned_phrases=banned)
    return parse_answer(task, [generated(text)])


def ours(case: Case, text: str) -> Objects | str:
    result = answered(case, text)
    if isinstance(result, TextResult):
        return result.text
    objects: Objects = []
    for item in result.items:
        match item:
            case Detection(box):
                objects.append((ascii_only(item.label), truncated(box)))
            case TextRegion(quad):
                objects.append((ascii_only(item.text), truncated(chain(*quad))))
            case Instance():
                objects += [("", truncated(chain(*ring))) for ring in item.polygons or ()]
    return objects


def reference(post_processor: Florence2PostProcessor, case: Case, text: str) -> Objects | str:
    kind = case.reference_type

    def read(image_wh: tuple[int, int]) -> Any:
        return post_processor(text=text, image_size=image_wh, parse_tasks=kind)[kind]

    if kind == "pure_text":
        return str(read(IMAGE_WH)).strip()
    # each position in an image of 1000 pixels is its bin, which tells boxes without area
    in_bins = unfolded(read((1000, 1000)))
    objects: Objects = []
    for (label, box), (_, bins) in zip(unfolded(read(IMAGE_WH)), in_bins, strict=True):
        if kind in ("polygons", "ocr"):
            objects.append((label, box))
        elif len(set(bins[::2])) > 1 and len(set(bins[1::2])) > 1:
            xs = box[::2]
            ys = box[1::2]
            objects.append((label, [min(xs), min(ys), max(xs), max(ys)]))
    return objects


def unfolded(instances: Any) -> Objects:
    """Return each box, quad or polygon with its label; an instance may have several."""
    objects: Objects = []
    for instance in instances:
        label = ascii_only(instance.get("text") or instance.get("cat_name", ""))
        places = instance.get("polygons") or instance.get("quad_box") or instance["bbox"]
        for place in places if isinstance(places[0], list) else [places]:
            objects.append((label, list(place)))
    return objects


def ascii_only(label: str) -> str:
    return " ".join(label.encode("ascii", "ignore").decode("ascii").split())


def truncated(coordinates: Iterable[float]) -> list[int]:
    return [int(coordinate) for coordinate in coordinates]
