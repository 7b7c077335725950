"""Labels against the true ones: which are right, and which objects are found."""

from dataclasses import replace

import pytest

from diptych_client import (
    AnswerOptions,
    Detection,
    DetectionsResult,
    TaskParameters,
    TextRegionsResult,
    TextResult,
)
from diptych_client.evaluation.annotation.judging import (
    NOT_FOUND,
    JudgedImage,
    Tolerance,
    judge_labels,
    truth_of,
)
from diptych_client.evaluation.dataset import (
    LabelledImage,
    TrueObject,
    TruePhrase,
    TrueQuestion,
)
from diptych_client.evaluation.job import Job, Record
from diptych_client.evaluation.questions import ObjectsTruth, TextsTruth
from diptych_client.inputs import ImageFile
from tests.support.client_answers import INSTANCES, TEXT_REGIONS, record

CAR = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (1.0, 0.0, 11.0, 10.0)  # IoU 9/11
FAR = (20.0, 0.0, 30.0, 10.0)
IMAGE = ImageFile("a.png", 1, 1)


def judged(*boxes: Detection, true: tuple[TrueObject, ...], min_iou: float = 0.5) -> JudgedImage:
    given = record(DetectionsResult(boxes))
    return judge_labels((given,), ObjectsTruth(true), Tolerance(min_iou))


def answered(task: str, text: str) -> Record:
    own = record(TextResult(text))
    return replace(own, answer=replace(own.answer, task=task))


def test_a_box_is_right_with_the_label_at_the_place_of_an_object() -> None:
    boxes = (Detection(SHIFTED, "Car", 0.9), Detection(CAR, "dog", 0.8), Detection(FAR, "car", 0.7))
    found = judged(*boxes, true=(TrueObject("car", CAR),))
    assert found == JudgedImage((0.9, 0.8, 0.7), (True, False, False), (0.9,))


def test_a_second_box_of_an_object_is_wrong_whatever_its_order() -> None:
    boxes = (Detection(CAR, "car", 0.5), Detection(SHIFTED, "car", 0.9))
    assert judged(*boxes, true=(TrueObject("car", CAR),)).is_right == (False, True)


def test_a_box_takes_the_object_that_it_covers_best() -> None:
    true = (TrueObject("car", SHIFTED), TrueObject("car", CAR))
    boxes = (Detection(CAR, "car", 0.9), Detection(SHIFTED, "car", 0.5))
    assert judged(*boxes, true=true, min_iou=0.6).is_right == (True, True)


def test_a_higher_iou_can_be_asked() -> None:
    box = Detection(SHIFTED, "car", 0.9)
    found = judged(box, true=(TrueObject("car", CAR),), min_iou=0.9)
    assert (found.is_right, found.object_scores) == ((False,), (NOT_FOUND,))


def test_any_number_of_boxes_of_a_crowd_is_right() -> None:
    true = (TrueObject("car", (0.0, 0.0, 30.0, 10.0), is_crowd=True),)
    boxes = (Detection(CAR, "car", 0.9), Detection(SHIFTED, "car", 0.8))
    assert judged(*boxes, true=true) == JudgedImage((0.9, 0.8), (True, True), ())


def test_masks_are_compared_where_both_have_one() -> None:
    ring, _ = INSTANCES.instances  # a square with a hole: its box is the whole square
    given = record(type(INSTANCES)((ring,)))
    hole = [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]
    for segmentation, is_right in ((None, True), ([hole], False)):
        true = TrueObject("ring", ring.box_xyxy, segmentation)
        assert judge_labels((given,), ObjectsTruth((true,)), Tolerance()).is_right == (is_right,)


def test_two_models_box_has_the_lower_score_and_the_others_find_objects() -> None:
    one = record(DetectionsResult((Detection(CAR, "car", 0.9), Detection(FAR, "dog", 0.4))))
    two = record(DetectionsResult((Detection(SHIFTED, "car", 0.6),)))
    true = (TrueObject("car", CAR), TrueObject("dog", FAR))
    assert judge_labels(
        (
            one,
            two,
        ),
        ObjectsTruth(true),
        Tolerance(),
    ) == JudgedImage((0.6,), (True,), (0.9, 0.4))


@pytest.mark.parametrize(
    ("task", "text", "true", "max_cer", "is_right"),
    [
        ("ocr", "EXIT  now", "EXIT now", 0.0, True),
        ("ocr", "EXIT", "EXII", 0.0, False),
        ("ocr", "EXIT", "EXII", 0.25, True),
        ("ocr", "", "", 0.0, True),
        ("ocr", "x", "", 1.0, False),
        ("visual_question_answering", "Two.", "2", 0.0, True),
        ("visual_question_answering", "two", "three", 1.0, False),
    ],
)
def test_a_text_is_right_if_it_is_near_enough(
    task: str, text: str, true: str, max_cer: float, is_right: bool
) -> None:
    found = judge_labels((answered(task, text),), TextsTruth((true,)), Tolerance(max_cer=max_cer))
    assert found == JudgedImage((1.0,), (is_right,))


def test_the_confidence_of_two_models_text_is_their_similarity() -> None:
    pair = [answered("ocr", "EXIT"), answered("ocr", "EXII")]
    assert judge_labels((pair[0], pair[1]), TextsTruth(("EXIT",)), Tolerance()) == JudgedImage(
        (0.75,), (True,)
    )


def test_the_truth_is_that_of_the_job() -> None:
    objects = (TrueObject("car", CAR), TrueObject("dog", FAR))
    labelled = LabelledImage(
        IMAGE,
        objects,
        captions=("a car",),
        text="EXIT",
        questions=(TrueQuestion("How many?", ("2",)), TrueQuestion("why?", ("x",))),
        phrases=(TruePhrase("left car", CAR), TruePhrase("sky", None)),
    )
    phrase = ObjectsTruth((TrueObject("left car", CAR),))
    for task, parameters, expected in (
        ("object_detection", TaskParameters(), ObjectsTruth(objects)),
        ("open_vocabulary_detection", TaskParameters(labels=("Car",)), ObjectsTruth(objects[:1])),
        ("phrase_grounding", TaskParameters(phrases=("left car",)), phrase),
        ("instance_segmentation", TaskParameters(phrase="left car"), phrase),
        ("captioning", TaskParameters(), TextsTruth(("a car",))),
        ("ocr", TaskParameters(), TextsTruth(("EXIT",))),
        ("visual_question_answering", TaskParameters(question="how many?"), TextsTruth(("2",))),
        ("visual_question_answering", TaskParameters(question="who?"), None),
    ):
        assert truth_of(labelled, Job(task, "a", parameters, AnswerOptions())) == expected


def test_a_text_region_takes_a_line_of_the_true_text() -> None:
    (region,) = TEXT_REGIONS.text_regions
    texts = {"Hi": 0.5, "HI": 0.9, "EXIT": 0.7}
    regions = tuple(replace(region, text=text, score=score) for text, score in texts.items())
    given = record(TextRegionsResult((*regions, regions[1])))
    found = judge_labels((given,), TextsTruth(("HI \nEXIT\nHI",)), Tolerance())
    assert found == JudgedImage((0.5, 0.9, 0.7, 0.9), (False, True, True, True))
    lone = judge_labels((given,), TextsTruth(("HI",)), Tolerance())
    assert lone.is_right == (False, True, False, False)
