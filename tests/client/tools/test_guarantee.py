"""Boxes against the true objects; near-duplicates; rules, and the proof of labelled images."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from diptych_client import AnswerOptions, Detection, DetectionsResult, TaskParameters
from diptych_client.datasets.dataset import LabelledImage, TrueObject, TruePhrase
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.long_runs import RunError
from diptych_client.datasets.records import Job
from diptych_client.geometry import BoxXyxy
from diptych_client.tools.consensus import Records, find_agreement
from diptych_client.tools.guarantee import (
    ALL,
    AgreedBoxes,
    Promise,
    Proved,
    Rule,
    appearance,
    choose_rules,
    decide,
    find_repeats,
    judge,
    prove,
    select_truth,
)
from diptych_client.tools.questions import ObjectsTruth
from tests.support.client_answers import INSTANCES, record
from tests.support.image_files import encoded
from tests.support.scene_images import scene_image

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
    ("boxes", "objects", "min_iou", "is_right"),
    [
        ([SHIFTED_9, (CAR, "dog", 0.8), FAR_7], [TRUE_CAR], 0.5, (True, False, False)),
        # a second box of an object is wrong, whatever its order
        ([(CAR, "car", 0.5), SHIFTED_9], [TRUE_CAR], 0.5, (False, True)),
        # a box takes the object that it covers best
        ([CAR_9, RIGHT_5], [TrueObject("car", SHIFTED), TRUE_CAR], 0.7, (True, True)),
        ([(HALF, "car", 0.9)], [TRUE_CAR], 0.5, (True,)),
        ([SHIFTED_9], [TRUE_CAR], 0.9, (False,)),
        ([(CAR, "", 0.9)], [TRUE_CAR], 0.5, (True,)),  # a task without labels
        ([(CAR, "car", None)], [TRUE_CAR], 0.5, (True,)),
        ([], [TRUE_CAR], 0.5, ()),
        # any number of boxes of a crowd is right
        ([CAR_9, SHIFTED_9], [TrueObject("car", CROWD, is_crowd=True)], 0.5, (True, True)),
    ],
)
def test_box_is_right_at_an_object(
    boxes: list[tuple[BoxXyxy, str, float | None]],
    objects: list[TrueObject],
    min_iou: float,
    is_right: tuple[bool, ...],
) -> None:
    answer = record(DetectionsResult(tuple(Detection(*box) for box in boxes)))
    agreed = find_agreement((answer,), min_iou, ALL)
    assert judge(agreed, ObjectsTruth(tuple(objects)), min_iou) == is_right


def test_masks_are_compared_where_both_have_one() -> None:
    ring, _ = INSTANCES.instances  # a square with a hole: its box is the whole square
    answer = record(type(INSTANCES)((ring,)))
    hole = [4.0, 4.0, 8.0, 4.0, 8.0, 8.0, 4.0, 8.0]
    for segmentation, is_right in ((None, True), ([hole], False)):
        true = TrueObject("ring", ring.box_xyxy, segmentation)
        agreed = find_agreement((answer,), 0.5, ALL)
        assert judge(agreed, ObjectsTruth((true,)), 0.5) == (is_right,)


OBJECTS = (TRUE_CAR, TrueObject("dog", FAR))
LABELLED = LabelledImage(
    ImageFile("a.png", 1, 1),
    OBJECTS,
    phrases=(TruePhrase("left car", CAR), TruePhrase("sky", None)),
)
LEFT_CAR = ObjectsTruth((TrueObject("left car", CAR),))


@pytest.mark.parametrize(
    ("task", "parameters", "truth"),
    [
        ("object_detection", TaskParameters(), ObjectsTruth(OBJECTS)),
        ("open_vocabulary_detection", TaskParameters(labels=("Car",)), ObjectsTruth(OBJECTS[:1])),
        ("phrase_grounding", TaskParameters(phrases=("left car",)), LEFT_CAR),
        ("instance_segmentation", TaskParameters(phrase="left car"), LEFT_CAR),
    ],
)
def test_truth_is_that_of_the_job(
    task: str, parameters: TaskParameters, truth: ObjectsTruth
) -> None:
    job = Job(task, "a", parameters, AnswerOptions())
    assert select_truth(LABELLED, job) == truth
    assert select_truth(LabelledImage(LABELLED.image), job) is None


def test_near_duplicates_count_once() -> None:
    scene = scene_image(1)
    small = scene.resize((160, 120))
    dull = ImageEnhance.Contrast(scene).enhance(0.8)
    pictures = [scene, scene_image(2), small, scene_image(3), dull, *map(scene_image, range(4, 30))]
    data = [encoded(picture) for picture in pictures] + [encoded(scene, "JPEG"), b"", b""]
    data += [encoded(Image.new("RGB", (8, 8), tone)) for tone in ("white", "black")]
    is_repeat = find_repeats(np.array(list(map(appearance, data))))
    assert np.flatnonzero(is_repeat).tolist() == [2, 4, len(pictures)]


def test_near_duplicates_of_many_images() -> None:
    """Blocks compare with all images before them, and with none after."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(2500, 64)).astype(np.float32)
    vectors[2400] = vectors[10]
    vectors[1001] = vectors[1000]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.flatnonzero(find_repeats(vectors)).tolist() == [1001, 2400]


PROMISE = Promise(0.05, 0.95)


Labels = tuple[tuple[float, ...], bool]  # the confidences of an image, and whether they are right


def boxes_of(rows: Sequence[Sequence[float]]) -> AgreedBoxes:
    scores = np.array([score for row in rows for score in row])
    images = np.repeat(np.arange(len(rows)), list(map(len, rows)))
    return AgreedBoxes(scores, np.full(len(scores), "", dtype=object), images, len(rows))


def labels(*confidences: float, is_right: bool = True) -> Labels:
    return confidences, is_right


def proved(
    judged: Sequence[Labels], rules: dict[Rule, float], promise: Promise = PROMISE
) -> tuple[Proved, ...]:
    boxes = boxes_of([confidences for confidences, _ in judged])
    is_right = np.array([is_right for _, is_right in judged])[boxes.images]
    return decide(boxes, is_right, rules, promise)


def test_rules_cover_more_and_at_last_all() -> None:
    rules = choose_rules(boxes_of([[0.1 * number] * (1 + number % 2) for number in range(10)]))
    confidences = [rule.min_confidence for rule in rules]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[-1] == 0  # the lowest
    assert sum(rules.values()) == pytest.approx(1)
    assert [rule.max_labels for rule in rules] == [2] * len(rules)
    (first, *_) = choose_rules(boxes_of([[0.9], [0.9], [0.5] * 3]))
    assert first == Rule(0.9, 1)  # labels from the confidence on count
    assert choose_rules(boxes_of([])) == choose_rules(boxes_of([[]])) == {Rule(0.0, 1): 1.0}
    assert choose_rules(boxes_of([[1.0]] * 5)) == {Rule(1.0, 1): 1.0}


def test_largest_proved_coverage_is_chosen() -> None:
    judged = [labels(0.9), labels(0.8), labels(0.1, is_right=False)] * 100
    tested = {Rule(0.9, 1): 0.5, Rule(0.8, 1): 0.0, Rule(0.0, 1): 0.5}
    first, *others = proved(judged, tested)
    assert first == Proved(PROMISE, Rule(0.8, 1), 0.0, 2 / 3, 300)
    assert [proof.promise.max_share for proof in others] == [0.1, 0.2]
    several = [labels(0.9, 0.9, is_right=False)] * 300  # they are reviewed as a whole
    first, *_ = proved([*several, *[labels(0.9)] * 300], {Rule(0.9, 1): 1.0})
    assert first == Proved(PROMISE, Rule(0.9, 1), 0.0, 1 / 3, 600)


def test_unproved_rule_passes_no_level_on() -> None:
    judged = [labels(0.9, is_right=False), labels(0.1)] * 200
    tested = {Rule(0.9, 1): 1.0, Rule(0.1, 1): 0.0}
    claim = (
        "400 labelled images prove no threshold: 50 % of all labels are wrong; needed is at most"
    )
    with pytest.raises(RunError, match=f"{claim} 60 % with 95 % confidence"):
        proved(judged, tested, Promise(0.6, 0.95))


def test_64_right_labels_prove_five_percent() -> None:
    tested = {Rule(0.0, 1): 1.0}
    assert proved([labels(1.0)] * 64, tested)
    with pytest.raises(RunError, match="prove no threshold"):
        proved([labels(1.0)] * 63, tested)


def num_proved(num_draws: int, num_images: int, num_labels: int, share_wrong: float) -> int:
    """Return how often a share above 5 % is proved; the labels of an image are wrong together."""
    rng = np.random.default_rng(1)
    count = 0
    for _ in range(num_draws):
        scores = boxes_of(rng.random((num_images, num_labels)).tolist())
        is_right = np.repeat(rng.random(num_images) >= share_wrong, num_labels)
        rules = choose_rules(boxes_of(rng.random((40, num_labels)).tolist()))
        with suppress(RunError):
            count += bool(decide(scores, is_right, rules, PROMISE))
    return count


@pytest.mark.parametrize("num_labels", [1, 8])
def test_exceeded_share_is_rarely_proved(num_labels: int) -> None:
    """A bound that took the labels of an image for independent fails."""
    assert num_proved(100, 80, num_labels, 0.052) <= 0.05 * 100


@pytest.mark.long
@pytest.mark.parametrize("num_labels", [1, 3, 8])
@pytest.mark.parametrize("num_images", [80, 300, 1000])
def test_few_of_a_thousand_draws_prove_too_much(num_images: int, num_labels: int) -> None:
    number = num_proved(1000, num_images, num_labels, 0.05)
    print(f"{num_images} images, {num_labels} labels each: {number} of 1000 prove 5 %")
    assert number <= 50 + 2 * 7  # two standard errors


def answers(*scores: float | None) -> Records:
    return (record(DetectionsResult(tuple(Detection(CAR, "car", score) for score in scores))),)


def test_proof_accepts_from_its_scores() -> None:
    true, false = (ObjectsTruth((TrueObject(label, CAR),)) for label in ("car", "dog"))
    labelled = [(answers(0.9), true)] * 300 + [(answers(0.4), true)] * 60 + [(answers(0.2), false)]
    promise = (0.5, Promise(0.02, 0.9))
    pilot = [answers(0.9)] * 80 + [answers(0.4)] * 15 + [answers(0.2)] * 5
    guarantee = prove(labelled, pilot, *promise)
    assert guarantee.accepting[""].rule == Rule(0.2, 1)
    shares = [proof["min_precision"] for proof in guarantee.proofs()]
    assert shares == [0.8, 0.9, 0.95, 0.98, 0.99]
    accepting = replace(guarantee.accepting[""], rule=Rule(0.95, 1))
    agreed = replace(guarantee, accepting={"": accepting}).accept(answers(0.95, 0.9, 0.89, None))
    assert [box.score for box in agreed.accepted] == [0.95]
    assert [box.score for _, box in agreed.differing] == [0.9, 0.89, None]
    assert guarantee.accept(answers(0.9, 0.9)).accepted == ()  # too many labels
    (entry,) = answers(0.1)
    unlike = replace(entry, answer=replace(entry.answer, familiarity=0.0))
    assert len(guarantee.accept((unlike,)).differing) == 1
    with pytest.raises(RunError, match="no labelled image is left"):
        prove([], pilot, *promise)
    with pytest.raises(RunError, match="of all labels are wrong"):
        prove([(answers(0.9), false)] * 99, pilot, *promise)


def test_classes_share_the_level() -> None:
    boxes = (Detection(CAR, "Car", 0.9), Detection(FAR, "dog", 0.9))
    image = ((record(DetectionsResult(boxes)),), ObjectsTruth((TRUE_CAR, TrueObject("dog", FAR))))
    pilot = [image[0]] * 20
    with pytest.raises(RunError, match="77 labelled images prove no threshold"):
        prove([image] * 77, pilot, 0.5, PROMISE, is_by_class=True)  # 64 would prove a single class
    guarantee = prove([image] * 78, pilot, 0.5, PROMISE, is_by_class=True)
    assert [(label, proof.promise) for label, proof in guarantee.accepting.items()] == [
        ("car", PROMISE),
        ("dog", PROMISE),
    ]
    assert guarantee.by_class == {"car": (0, 78), "dog": (0, 78)}
    agreed = guarantee.accept((record(DetectionsResult((*boxes, boxes[0]))),))
    assert [box.label for box in agreed.accepted] == ["dog"]  # too many cars
    with pytest.raises(RunError, match="no class is in a sample"):
        prove([image] * 78, [answers()], 0.5, PROMISE, is_by_class=True)
