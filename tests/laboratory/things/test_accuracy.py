"""The measures of scenes of things: words, order, classes, confusions and their intervals."""

from typing import Any

import pytest

from export.scenes import Question, Tally
from export.scenes.scoring import Scorecard
from export.scenes.truth import (
    DetectionsTruth,
    LabelledBox,
    QuadText,
    TextRegionsTruth,
    TextTruth,
    Truth,
)
from laboratory.evaluation import CONDITIONS
from laboratory.things import sample_things
from laboratory.things.accuracy import (
    FIRST_SEED,
    asked_scenes,
    interval,
    score_thing_answer,
    thing_table,
)
from tests.support.drawn_material import DrawnMaterial

SIZE_WH = (192, 192)
LION = (10.0, 10.0, 60.0, 60.0)
CAT = (100.0, 100.0, 150.0, 150.0)


def scored(task: str, truth: Truth, result: dict[str, Any], **options: str) -> Scorecard:
    return score_thing_answer(result, Question(task, task, {}, truth), SIZE_WH, **options)


def detection(label: str, box: tuple[float, ...]) -> dict[str, Any]:
    return {"label": label, "box": list(box), "score": 0.9}


def test_words_count_even_where_the_text_is_not_exact() -> None:
    scorecard = scored("ocr", TextTruth("MILK 1.20\nTEA 2.40"), {"text": "MILK 1.20\nTFA 2.40"})
    assert scorecard.tally("ocr", "exact").f1 == 0
    assert scorecard.tally("ocr words", "exact") == Tally(3, 4, 4)


@pytest.mark.parametrize(("order", "is_right"), [((0, 1), 1.0), ((1, 0), 0.0)])
def test_lines_are_in_order_whatever_their_words(order: tuple[int, int], is_right: float) -> None:
    quads = [
        ((10.0, top), (90.0, top), (90.0, top + 20.0), (10.0, top + 20.0)) for top in (10.0, 50.0)
    ]
    truth = TextRegionsTruth(tuple(QuadText("A", quad) for quad in quads))
    given = [{"text": "B", "quad": quads[index]} for index in order]
    scorecard = scored("ocr_with_regions", truth, {"text_regions": given})
    assert scorecard.tally("ocr_with_regions order", "exact").f1 == is_right


@pytest.mark.parametrize("by_class", ["object_detection", "open_vocabulary_detection several"])
def test_a_wrong_label_counts_against_both_classes_and_is_a_confusion(by_class: str) -> None:
    truth = DetectionsTruth((LabelledBox("lion", LION), LabelledBox("cat", CAT)))
    result = {"detections": [detection("tiger", LION), detection("cat", CAT)]}
    scorecard = scored(by_class, truth, result, by_class=by_class)
    f1 = {
        name: scorecard.tally(f"class {name}", "f1_at_50").f1 for name in ("cat", "lion", "tiger")
    }
    assert f1 == {"cat": 1.0, "lion": 0.0, "tiger": 0.0}
    table = thing_table([scorecard])
    assert "| confused lion as tiger | times | 1 |" in table


def test_an_interval_holds_the_value_and_narrows_with_the_number_of_scenes() -> None:
    few = interval([Tally(1, 1, 1), Tally(0, 1, 1)] * 10)
    many = interval([Tally(1, 1, 1), Tally(0, 1, 1)] * 200)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]


def test_unseen_scenes_have_their_own_seeds_and_every_tenth_has_no_thing() -> None:
    material = DrawnMaterial()
    asked = list(asked_scenes(material, 10, "ours", CONDITIONS["plain"]))
    first = sample_things(FIRST_SEED, material)
    named = next(q.truth for q in asked[0][1] if q.name == "object_detection")
    assert isinstance(named, DetectionsTruth)
    assert [box.label for box in named.boxes] == [placed.thing.name for placed in first.things]
    assert [index for index, (_, questions) in enumerate(asked) if is_empty(questions)] == [9]


def is_empty(questions: list[Question]) -> bool:
    return any(q.name == "open_vocabulary_detection no object" for q in questions)
