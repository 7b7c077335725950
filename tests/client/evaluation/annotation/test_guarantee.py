"""Labels against the true ones; rules, and the proof that labelled images give."""

from contextlib import suppress
from dataclasses import replace
from math import log

import numpy as np
import pytest

from diptych_client import (
    AnswerOptions,
    Detection,
    DetectionsResult,
    TaskParameters,
    TextRegionsResult,
    TextResult,
)
from diptych_client.evaluation.annotation.consensus import Records, agreement
from diptych_client.evaluation.annotation.guarantee import (
    NOT_FOUND,
    JudgedImage,
    Promise,
    Proved,
    Rule,
    Tolerance,
    Truth,
    appearance,
    candidates,
    decide,
    decide_review,
    differing_images,
    judge_labels,
    prove,
    truth_of,
)
from diptych_client.evaluation.dataset import LabelledImage, TrueObject, TruePhrase, TrueQuestion
from diptych_client.evaluation.questions import Job, ObjectsTruth, Record, TextsTruth
from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import RunError
from diptych_client.results import Result
from tests.support.client_answers import INSTANCES, TEXT_REGIONS, record

CAR = (0.0, 0.0, 10.0, 10.0)
SHIFTED = (1.0, 0.0, 11.0, 10.0)  # IoU 9/11
HALF = (0.0, 0.0, 5.0, 10.0)
FAR = (20.0, 0.0, 30.0, 10.0)
CROWD = (0.0, 0.0, 30.0, 10.0)
TRUE_CAR = TrueObject("car", CAR)
CAR_9 = (CAR, "car", 0.9)
SHIFTED_9 = (SHIFTED, "Car", 0.9)
RIGHT_5 = ((2.0, 0.0, 12.0, 10.0), "car", 0.5)
FAR_7 = (FAR, "car", 0.7)


@pytest.mark.parametrize(
    ("boxes", "objects", "min_iou", "is_right", "object_scores"),
    [
        ([SHIFTED_9, (CAR, "dog", 0.8), FAR_7], [TRUE_CAR], 0.5, (True, False, False), (0.9,)),
        # a second box of an object is wrong, whatever its order
        ([(CAR, "car", 0.5), SHIFTED_9], [TRUE_CAR], 0.5, (False, True), (0.9,)),
        # a box takes the object that it covers best
        ([CAR_9, RIGHT_5], [TrueObject("car", SHIFTED), TRUE_CAR], 0.7, (True, True), (0.9, 0.9)),
        ([(HALF, "car", 0.9)], [TRUE_CAR], 0.5, (True,), (0.9,)),
        ([SHIFTED_9], [TRUE_CAR], 0.9, (False,), (NOT_FOUND,)),
        ([(CAR, "", 0.9)], [TRUE_CAR], 0.5, (True,), (0.9,)),  # a task without labels
        ([], [TRUE_CAR], 0.5, (), (NOT_FOUND,)),
        # any number of boxes of a crowd is right
        ([CAR_9, SHIFTED_9], [TrueObject("car", CROWD, is_crowd=True)], 0.5, (True, True), ()),
    ],
)
def test_box_is_right_at_an_object(
    boxes: list[tuple[BoxXyxy, str, float]],
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
    accepted = [agreement(pair, 0.5, least).accepted for least in (0.75, 0.76)]
    assert accepted == [(TextResult("EXIT"),), ()]


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


PROMISE = Promise(0.05, 0.95)


def labels(*confidences: float, is_right: bool = True) -> JudgedImage:
    return JudgedImage(confidences, (is_right,) * len(confidences))


def test_rules_cover_more_and_at_last_all() -> None:
    rules = candidates([[0.1 * number] * (1 + number % 2) for number in range(10)])
    confidences = [rule.min_confidence for rule in rules]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[-1] == 0  # the lowest
    assert sum(rules.values()) == pytest.approx(1)
    assert [rule.max_labels for rule in rules] == [2] * len(rules)
    (first, *_) = candidates([[0.9], [0.9], [0.5] * 3])
    assert first == Rule(0.9, 1)  # labels from the confidence on count
    assert candidates([]) == candidates([[]]) == {Rule(0.0, 1): 1.0}
    assert candidates([[1.0]] * 5) == {Rule(1.0, 1): 1.0}


def test_largest_proved_coverage_is_chosen() -> None:
    judged = [labels(0.9), labels(0.8), labels(0.1, is_right=False)] * 100
    tested = {Rule(0.9, 1): 0.5, Rule(0.8, 1): 0.0, Rule(0.0, 1): 0.5}
    first, *others = decide(judged, tested, PROMISE)
    assert first == Proved(PROMISE, Rule(0.8, 1), 0.0, 2 / 3, 300)
    assert [proof.promise.max_share for proof in others] == [0.1, 0.2]
    several = [labels(0.9, 0.9, is_right=False)] * 300  # they are reviewed as a whole
    first, *_ = decide([*several, *[labels(0.9)] * 300], {Rule(0.9, 1): 1.0}, PROMISE)
    assert first == Proved(PROMISE, Rule(0.9, 1), 0.0, 1 / 3, 600)


def test_unproved_rule_passes_no_level_on() -> None:
    judged = [labels(0.9, is_right=False), labels(0.1)] * 200
    tested = {Rule(0.9, 1): 1.0, Rule(0.1, 1): 0.0}
    claim = (
        "400 labelled images prove no threshold: 50 % of all labels are wrong; asked were at most"
    )
    with pytest.raises(RunError, match=f"{claim} 60 % with 95 % confidence"):
        decide(judged, tested, Promise(0.6, 0.95))


def test_71_right_labels_prove_five_percent() -> None:
    tested = {Rule(0.0, 1): 1.0}
    assert decide([labels(1.0)] * 71, tested, PROMISE)
    with pytest.raises(RunError, match="prove no threshold"):
        decide([labels(1.0)] * 70, tested, PROMISE)


def test_review_list_is_as_short_as_proved() -> None:
    objects = [[0.9], [0.9], [0.5], [0.1]] * 100
    decision = decide_review(objects, 1, [0.0, 0.3, 0.6], Promise(0.4, 0.95))
    assert decision == Proved(Promise(0.4, 0.95), Rule(0.3, 1), 0.25, 0.75, 400)
    with pytest.raises(RunError, match="50 % of all objects are in neither list"):
        decide_review([[NOT_FOUND], [0.9]] * 100, 1, [0.0, 0.3], PROMISE)
    # boxes from the score on are listed
    assert decide_review([[0.3]] * 400, 1, [0.0, 0.3, 0.6], PROMISE).rule == Rule(0.3, 1)
    one_missed = [[0.9]] * 67 + [[0.2]]  # proved with twice the level
    decision = decide_review(one_missed, 1, [0.0, 0.3], Promise(0.1, 0.95))
    assert decision.rule == Rule(0.0, 1)


def num_proved(num_draws: int, num_images: int, share_wrong: float) -> int:
    """Return how often a share above 5 % is proved; the labels of an image are wrong together."""
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(num_draws):
        judged = []
        for scores in rng.random((num_images, 8)).tolist():
            judged.append(labels(*scores, is_right=bool(rng.random() >= share_wrong)))
        pilot = rng.random((40, 8)).tolist()
        with suppress(RunError):
            count += bool(decide(judged, candidates(pilot), PROMISE))
    return count


def test_exceeded_share_is_rarely_proved() -> None:
    """A bound that took the labels of an image for independent fails."""
    assert num_proved(200, 80, 0.052) <= 0.05 * 200


@pytest.mark.long
@pytest.mark.parametrize("num_images", [80, 300])
def test_few_of_a_thousand_draws_prove_too_much(num_images: int) -> None:
    assert num_proved(1000, num_images, 0.051) <= 0.05 * 1000


def answers(*scores: float) -> Records:
    return (record(DetectionsResult(tuple(Detection(CAR, "car", score) for score in scores))),)


def test_proof_accepts_and_reviews_from_its_scores() -> None:
    true, false = (ObjectsTruth((TrueObject(label, CAR),)) for label in ("car", "dog"))
    labelled = [(answers(0.9), true)] * 300 + [(answers(0.4), true)] * 60 + [(answers(0.2), false)]
    promises = (Tolerance(), Promise(0.02, 0.9), Promise(0.3, 0.9))
    pilot = [answers(0.9)] * 80 + [answers(0.4)] * 15 + [answers(0.2)] * 5
    guarantee = prove(labelled, pilot, *promises)
    assert guarantee.accepting.rule == Rule(0.2, 1)
    assert guarantee.reviewing is not None
    assert guarantee.reviewing.rule.min_confidence == 0.9
    shares = [proof["min_precision"] for proof in guarantee.proofs()]
    assert shares == [0.8, 0.9, 0.95, 0.98]
    accepting = replace(guarantee.accepting, rule=Rule(0.95, 1))
    agreed = replace(guarantee, accepting=accepting).accept(answers(0.95, 0.9, 0.89))
    assert [box.score for box in agreed.accepted] == [0.95]
    assert [box.score for _, box in agreed.differing] == [0.9]
    assert guarantee.accept(answers(0.9, 0.9)).accepted == ()  # too many labels
    assert "at most 30 % of the objects are in neither list" in guarantee.sentences()[-1]
    with pytest.raises(RunError, match="no labelled image is left"):
        prove([], pilot, *promises)
    with pytest.raises(RunError, match="of all labels are wrong"):
        prove([(answers(0.9), false)] * 99, pilot, *promises)
    with pytest.raises(RunError, match="objects are in neither list"):
        prove([*labelled, *[(answers(), true)] * 999], pilot, *promises)


def measured(result: Result) -> list[float]:
    return appearance((record(result, image=ImageSize(100, 50)),), ("cat", "dog"))


def test_image_and_answer_are_numbers() -> None:
    size = [log(100), log(50)]
    boxes = (Detection(CAR, "dog", 0.5), Detection((0.0, 0.0, 20.0, 45.0), "Dog", 0.75))
    assert measured(DetectionsResult(boxes)) == pytest.approx([*size, 0, 2, 2, 0.625, 20])
    assert measured(DetectionsResult(())) == [*size, 0, 0, 0, 0, 0]
    assert measured(TextResult("EXIT")) == [*size, 4]


def images(seed: int, num: int, shift: float = 0.0) -> list[list[float]]:
    """Return images with a constant, a shifted, a plain and a counted number."""
    rng = np.random.default_rng(seed)
    appearances = []
    for _ in range(num):
        appearances.append([1.0, rng.normal(shift), rng.normal(), float(rng.integers(0, 4))])
    return appearances


def test_equal_images_are_rarely_told_apart() -> None:
    num_alarms = 0
    for draw in range(200):
        num_alarms += bool(differing_images(images(draw, 60), images(1000 + draw, 40)))
    assert num_alarms <= 12  # 6 are expected


def test_differing_images_are_named() -> None:
    labelled = images(0, 90)
    assert len(differing_images(labelled, images(1, 40, 4.0))) == 5
    mixed = [*images(1, 60), *images(2, 20, 4.0)]
    indices = differing_images(labelled, mixed)
    assert (len(indices), min(indices) >= 60) == (5, True)
    of_both = [*labelled, *images(3, 90, 4.0)]
    assert differing_images(of_both, images(4, 40, 4.0)) == []
    assert differing_images(labelled, images(2, 7, 4.0)) == []
    assert differing_images([], mixed) == differing_images(labelled, []) == []
