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
from diptych_client.evaluation.annotation.guarantee import (
    NOT_FOUND,
    JudgedImage,
    Tolerance,
    Truth,
    judge_labels,
    truth_of,
)
from diptych_client.evaluation.dataset import LabelledImage, TrueObject, TruePhrase, TrueQuestion
from diptych_client.evaluation.job import Job, Record
from diptych_client.evaluation.questions import ObjectsTruth, TextsTruth
from diptych_client.inputs import ImageFile
from tests.support.client_answers import INSTANCES, TEXT_REGIONS, record

CAR = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (1.0, 0.0, 11.0, 10.0)  # IoU 9/11
HALF = (0.0, 0.0, 5.0, 10.0)
FAR = (20.0, 0.0, 30.0, 10.0)
CROWD = (0.0, 0.0, 30.0, 10.0)
TRUE_CAR = TrueObject("car", CAR)


@pytest.mark.parametrize(
    ("boxes", "objects", "min_iou", "is_right", "object_scores"),
    [
        (
            [(SHIFTED, "Car", 0.9), (CAR, "dog", 0.8), (FAR, "car", 0.7)],
            [TRUE_CAR],
            0.5,
            (True, False, False),
            (0.9,),
        ),
        # a second box of an object is wrong, whatever its order
        ([(CAR, "car", 0.5), (SHIFTED, "car", 0.9)], [TRUE_CAR], 0.5, (False, True), (0.9,)),
        # a box takes the object that it covers best
        (
            [(CAR, "car", 0.9), (SHIFTED, "car", 0.5)],
            [TrueObject("car", SHIFTED), TRUE_CAR],
            0.6,
            (True, True),
            (0.9, 0.9),
        ),
        ([(HALF, "car", 0.9)], [TRUE_CAR], 0.5, (True,), (0.9,)),
        ([(SHIFTED, "car", 0.9)], [TRUE_CAR], 0.9, (False,), (NOT_FOUND,)),
        ([(CAR, "", 0.9)], [TRUE_CAR], 0.5, (True,), (0.9,)),  # a task without labels
        ([], [TRUE_CAR], 0.5, (), (NOT_FOUND,)),
        # any number of boxes of a crowd is right
        (
            [(CAR, "car", 0.9), (SHIFTED, "car", 0.8)],
            [TrueObject("car", CROWD, is_crowd=True)],
            0.5,
            (True, True),
            (),
        ),
    ],
)
def test_box_is_right_at_an_object(
    boxes: list[tuple[tuple[float, float, float, float], str, float]],
    objects: list[TrueObject],
    min_iou: float,
    is_right: tuple[bool, ...],
    object_scores: tuple[float, ...],
) -> None:
    answer = record(DetectionsResult(tuple(Detection(*box) for box in boxes)))
    judged = judge_labels((answer,), ObjectsTruth(tuple(objects)), Tolerance(min_iou))
    assert judged == JudgedImage(tuple(score for *_, score in boxes), is_right, object_scores)


def test_masks_are_compared_where_both_have_one() -> None:
    ring, _ = INSTANCES.instances  # a square with a hole: its box is the whole square
    answer = record(type(INSTANCES)((ring,)))
    hole = [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]
    for segmentation, is_right in ((None, True), ([hole], False)):
        true = TrueObject("ring", ring.box_xyxy, segmentation)
        assert judge_labels((answer,), ObjectsTruth((true,)), Tolerance()).is_right == (is_right,)


def test_two_models_have_the_lower_score() -> None:
    one = record(DetectionsResult((Detection(CAR, "car", 0.9), Detection(FAR, "dog", 0.4))))
    two = record(DetectionsResult((Detection(SHIFTED, "car", 0.6),)))
    truth = ObjectsTruth((TRUE_CAR, TrueObject("dog", FAR)))
    # the other boxes find objects, too
    assert judge_labels((one, two), truth, Tolerance()) == JudgedImage((0.6,), (True,), (0.9, 0.4))


def answered(task: str, text: str) -> Record:
    entry = record(TextResult(text))
    return replace(entry, answer=replace(entry.answer, task=task))


@pytest.mark.parametrize(
    ("task", "text", "true", "max_cer", "is_right"),
    [
        ("ocr", "EXIT  now", "EXIT now", 0.0, True),
        ("ocr", "EXIT", "EXII", 0.0, False),
        ("ocr", "EXIT", "EXII", 0.25, True),
        ("ocr", "EXIT", "EXII", 0.24, False),
        ("ocr", "", "", 0.0, True),
        ("ocr", "x", "", 1.0, False),
        ("visual_question_answering", "Two.", "2", 0.0, True),
        ("visual_question_answering", "two", "three", 1.0, False),
    ],
)
def test_text_is_right_if_near_enough(
    task: str, text: str, true: str, max_cer: float, is_right: bool
) -> None:
    tolerance = Tolerance(max_cer=max_cer)
    judged = judge_labels((answered(task, text),), TextsTruth((true,)), tolerance)
    assert judged == JudgedImage((1.0,), (is_right,))


def test_confidence_of_two_texts_is_their_similarity() -> None:
    pair = (answered("ocr", "EXIT"), answered("ocr", "EXII"))
    judged = judge_labels(pair, TextsTruth(("EXIT",)), Tolerance())
    assert judged == JudgedImage((0.75,), (True,))


def test_text_region_takes_a_line() -> None:
    (region,) = TEXT_REGIONS.text_regions
    texts = {"Hi": 0.5, "HI": 0.9, "EXIT": 0.7}
    regions = tuple(replace(region, text=text, score=score) for text, score in texts.items())
    answer = record(TextRegionsResult((*regions, regions[1])))
    judged = judge_labels((answer,), TextsTruth(("HI \nEXIT\nHI",)), Tolerance())
    assert judged == JudgedImage((0.5, 0.9, 0.7, 0.9), (False, True, True, True))
    lone = judge_labels((answer,), TextsTruth(("HI",)), Tolerance())
    assert lone.is_right == (False, True, False, False)


OBJECTS = (TRUE_CAR, TrueObject("dog", FAR))
LABELLED = LabelledImage(
    ImageFile("a.png", 1, 1),
    OBJECTS,
    captions=("a car",),
    text="EXIT",
    questions=(TrueQuestion("How many?", ("2",)), TrueQuestion("why?", ("x",))),
    phrases=(TruePhrase("left car", CAR), TruePhrase("sky", None)),
)
LEFT_CAR = ObjectsTruth((TrueObject("left car", CAR),))
QUESTIONS = "visual_question_answering"


@pytest.mark.parametrize(
    ("task", "parameters", "truth"),
    [
        ("object_detection", TaskParameters(), ObjectsTruth(OBJECTS)),
        ("open_vocabulary_detection", TaskParameters(labels=("Car",)), ObjectsTruth(OBJECTS[:1])),
        ("phrase_grounding", TaskParameters(phrases=("left car",)), LEFT_CAR),
        ("instance_segmentation", TaskParameters(phrase="left car"), LEFT_CAR),
        ("captioning", TaskParameters(), TextsTruth(("a car",))),
        ("ocr", TaskParameters(), TextsTruth(("EXIT",))),
        (QUESTIONS, TaskParameters(question="how many?"), TextsTruth(("2",))),
        (QUESTIONS, TaskParameters(question="who?"), None),
    ],
)
def test_truth_is_that_of_the_job(
    task: str, parameters: TaskParameters, truth: Truth | None
) -> None:
    job = Job(task, "a", parameters, AnswerOptions())
    assert truth_of(LABELLED, job) == truth
    if task != QUESTIONS:
        assert truth_of(LabelledImage(LABELLED.image), job) is None
    if task == "ocr":  # a text of another region
        assert truth_of(replace(LABELLED, region=FAR), job) is None
