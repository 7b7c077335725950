from dataclasses import replace

import pytest

from export.checks.answers import (
    MIN_CASES,
    MIN_EQUAL_TOKENS,
    AnswerAgreement,
    AnswerRun,
    GivenAnswer,
    agreeing_defaults,
    agreement,
    equal_share,
    matched_ious,
    text_distance,
)
from tasks.results import BoxXyxy, Detection, DetectionsResult, TextResult
from wire.artifacts.manifest import Device, Part, Precision

PERFECT = AnswerAgreement(48, 1.0, 40, 1.0, 1.0, 24, 0.0)
DEFAULTS: dict[Device, dict[Part, Precision]] = {
    "cpu": {"encoder": "int8", "decoder": "int8"},
    "cuda": {"encoder": "float16", "decoder": "bfloat16"},
}


def run(encoder: Precision, decoder: Precision, **measured: float) -> AnswerRun:
    return AnswerRun(encoder, decoder, "photographs", 24, replace(PERFECT, **measured))  # type: ignore[arg-type]


def boxes(*labelled: tuple[str, BoxXyxy]) -> DetectionsResult:
    return DetectionsResult(
        tuple(Detection(box, label, 1.0) for label, box in labelled), is_parsed=True
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((), (), 1.0),
        ((1, 2, 3), (1, 2, 3), 1.0),
        ((1, 2, 3, 4), (9, 1, 2, 3), 0.75),  # shifted by an insertion
        ((1, 2), (3, 4), 0.0),
        ((1, 2), (), 0.0),
    ],
)
def test_equal_tokens_are_counted_although_others_shift_them(
    first: tuple[int, ...], second: tuple[int, ...], expected: float
) -> None:
    assert equal_share(first, second) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("", "", 0.0),
        ("cat", "cat", 0.0),
        ("cat", "", 1.0),
        ("", "cat", 1.0),
        ("kitten", "sitting", 3 / 7),
    ],
)
def test_text_distance_is_levenshteins_per_character(
    first: str, second: str, expected: float
) -> None:
    assert text_distance(first, second) == pytest.approx(expected)


def test_each_box_is_matched_once_with_the_best_of_its_label() -> None:
    expected = boxes(
        ("cat", (0, 0, 10, 10)), ("cat", (20, 20, 30, 30)), ("dog", (0, 0, 10, 10))
    ).detections
    found = boxes(
        ("cat", (0, 0, 10, 8)), ("cat", (0, 0, 10, 10)), ("bird", (0, 0, 10, 10))
    ).detections
    assert matched_ious(found, expected) == [1.0]


def test_agreement_sums_over_all_prompts() -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    expected = [
        GivenAnswer((1, 2), TextResult("cat", True)),
        GivenAnswer((3, 4), boxes(("cat", box), ("dog", box))),
    ]
    answers = [
        GivenAnswer((1, 2), TextResult("cut", True)),
        GivenAnswer((3, 5), boxes(("cat", (0, 0, 10, 8)))),
    ]
    measured = agreement(answers, expected)
    assert (measured.num_prompts, measured.num_boxes, measured.num_texts) == (2, 2, 1)
    assert measured.equal_tokens == 0.75
    assert measured.matched_boxes == pytest.approx(2 / 3)
    assert measured.box_iou == pytest.approx(0.8)
    assert measured.text_distance == pytest.approx(1 / 3)


def test_boxes_that_float32_does_not_have_lower_the_agreement() -> None:
    answer = GivenAnswer((1,), boxes(("cat", (0, 0, 10, 10))))
    assert agreement([answer], [GivenAnswer((1,), boxes())]).matched_boxes == 0


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        ({"equal_tokens": 0.89}, "equal tokens 0.890, at least 0.90 required"),
        ({"matched_boxes": 0.89}, "matched boxes 0.890, at least 0.90 required"),
        ({"box_iou": 0.89}, "IoU of boxes 0.890, at least 0.90 required"),
        ({"text_distance": 0.11}, "equal text 0.890, at least 0.90 required"),
        ({"equal_tokens": float("nan")}, "equal tokens nan, at least 0.90 required"),
    ],
)
def test_default_below_a_threshold_becomes_float32_with_a_warning(
    measured: dict[str, float], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [run("int8", "float32", **measured), run("float32", "int8"), run("int8", "int8")]
    assert agreeing_defaults("some-model", DEFAULTS, runs) == DEFAULTS | {
        "cpu": {"encoder": "float32", "decoder": "int8"}
    }
    assert caplog.messages == [
        "some-model on cpu: the int8 encoder does not answer as float32 does: "
        f"{text}, on 24 photographs; the default of the encoder is float32 instead"
    ]


def test_weaker_part_of_a_pair_that_fails_together_becomes_float32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = [
        run("int8", "float32", equal_tokens=0.95),
        run("float32", "int8", equal_tokens=0.92),
        run("int8", "int8", equal_tokens=0.88),
    ]
    assert agreeing_defaults("some-model", DEFAULTS, runs)["cpu"] == {
        "encoder": "int8",
        "decoder": "float32",
    }
    assert "the int8 encoder with the int8 decoder does not answer as float32 does" in caplog.text


def test_thresholds_themselves_and_precisions_that_were_not_measured_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = [run("int8", "float32", equal_tokens=MIN_EQUAL_TOKENS), run("float32", "int8")]
    assert agreeing_defaults("some-model", DEFAULTS, runs) == DEFAULTS
    assert agreeing_defaults("some-model", DEFAULTS, []) == DEFAULTS
    assert not caplog.messages


def test_too_few_boxes_decide_nothing() -> None:
    assert not run("int8", "int8", matched_boxes=0.5, num_boxes=MIN_CASES - 1).shortfalls
    assert run("int8", "int8", matched_boxes=0.5, num_boxes=MIN_CASES).shortfalls
