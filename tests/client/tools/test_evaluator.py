"""The images that are evaluated, the gallery, phrases, agreement, and the form of names."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from diptych_client import AnswerOptions, DetectionsResult, TaskParameters
from diptych_client.datasets.dataset import Dataset, LabelledImage, TrueObject, TruePhrase
from diptych_client.datasets.inputs import Folder, ImageFile
from diptych_client.datasets.long_runs import RunError
from diptych_client.geometry import BoxXyxy
from diptych_client.results import Instance
from diptych_client.tools.evaluator import (
    Evaluation,
    Evaluator,
    PhrasesMeasure,
    best_form,
    disagreement,
    drawn,
    run_record,
)
from diptych_client.tools.questions import (
    AnswerLog,
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Questionnaire,
    Sample,
    TextsTruth,
)
from tests.support.client_answers import answer
from tests.support.evaluations import SIZE, detection, prediction

BOX: BoxXyxy = (0.0, 0.0, 10.0, 10.0)
FAR: BoxXyxy = (50.0, 50.0, 60.0, 60.0)
LARGE: BoxXyxy = (10.0, 10.0, 50.0, 50.0)
RING = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
HALF = ((0.0, 0.0), (10.0, 0.0), (10.0, 5.0), (0.0, 5.0))
NAMES = ClassNames(("car",), {"car": "car"})
NOTHING = DetectionsResult(())
PAIR = ("A", "B")


def dataset(num_images: int) -> Dataset:
    objects = (TrueObject("car", LARGE),)
    images = [LabelledImage(ImageFile(f"{i:02}.png", 1, 1), objects) for i in range(num_images)]
    return Dataset(images, Folder(Path()), ("car",))


def test_images_are_drawn_by_seed() -> None:
    images = dataset(20).images
    draws = []
    for seed in (1, 1, 2):
        draws.append([image.image.name for image in drawn(images, 8, seed)])
    assert len(set(draws[0])) == 8
    assert draws[0] == sorted(draws[0]) == draws[1] != draws[2]
    for number in (None, 20, 21):
        assert drawn(images, number, 1) == images


def evaluated(folder: Path, num_wrong: dict[str, list[int]]) -> Evaluation:
    """Evaluate models that find each object, and some boxes beside it in each image.

    A negative number is no answer.
    """
    labelled = dataset(len(next(iter(num_wrong.values()))))
    questionnaire = Questionnaire("object_detection", TaskParameters(), {}, labelled.classes)
    samples = list(questionnaire.samples(labelled))
    with AnswerLog.open(folder / "answers.jsonl", "object_detection", AnswerOptions()) as log:
        for model, numbers in num_wrong.items():
            for (image, job), number in zip(log.requests(samples, model), numbers, strict=True):
                boxes = (detection("car", LARGE), *[detection("car", FAR)] * number)
                if number >= 0:
                    result = answer(DetectionsResult(boxes), SIZE)
                    log.append(image, job, result)
        evaluator = Evaluator(log, tuple(num_wrong), questionnaire.names)
        return evaluator.evaluate("d", samples, seed=0, gallery=3)


def test_gallery_has_worst_and_most_different_first(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path / "one", {"model": [0, 3, 1, 5, -1, 2]})
    assert [ranked.sample_index for ranked in evaluation.gallery] == [3, 1, 5]
    assert evaluation.agreed is None
    assert (evaluation.num_samples, evaluation.num_unanswered) == (5, 1)
    evaluation = evaluated(tmp_path / "two", {"first": [0, 5, 5, 0], "second": [0, 5, 0, 1]})
    assert [ranked.sample_index for ranked in evaluation.gallery] == [2, 3, 1]
    assert evaluation.gallery[2].difference == 0


def test_agreement_is_of_all_images(tmp_path: Path) -> None:
    agreed = evaluated(tmp_path, {"first": [0, 0], "second": [0, 2]}).agreed
    assert agreed is not None
    assert agreed.intervals["first and second"]["agreement"].value == 75


def test_images_without_objects_leave_no_doubt(tmp_path: Path) -> None:
    image = ImageFile("a.png", 1, 1)
    samples = [Sample(image, (TaskParameters(),), ObjectsTruth(()))]
    with AnswerLog.open(tmp_path / "answers.jsonl", "t", AnswerOptions()) as log:
        for _, job in log.requests(samples, "m"):
            log.append(image, job, answer(DetectionsResult((detection("car", BOX),))))
        assert Evaluator(log, ("m",), NAMES).evaluate("d", samples, 0, 1).doubts == ()


def test_truths_of_two_kinds_are_refused(tmp_path: Path) -> None:
    truths = (PhrasesTruth((TruePhrase("car", BOX),)), TextsTruth(("a",)))
    samples = [Sample(ImageFile("a.png", 1, 1), (TaskParameters(),), truth) for truth in truths]
    with AnswerLog.open(tmp_path / "answers.jsonl", "t", AnswerOptions()) as log:
        for image, job in log.requests(samples[:1], "m"):
            log.append(image, job, answer(NOTHING))
        with pytest.raises(RunError, match="t cannot measure phrases and objects in one"):
            Evaluator(log, ("m",), ClassNames((), {})).evaluate("d", samples, 0, 1)


def test_boxes_agree_by_class_and_place() -> None:
    compare = partial(disagreement, PAIR, ClassNames((), {"auto": "car"}))
    first = prediction([detection("car", BOX), detection("dog", FAR)])
    second = [detection("Auto", BOX), detection("cat", FAR), detection("dog", BOX)]
    outcome = compare(first, prediction(second))
    assert outcome.error == 1 - 2 / 5
    assert outcome.kinds == {"found by both", "other label", "only B"}
    assert compare(prediction(), prediction()).error == 0
    assert compare(prediction([detection("car", BOX)]), prediction()).kinds == {"only A"}
    assert compare(prediction(text="abcd"), prediction(text="abcx")).error == 0.25
    assert compare(prediction(text=""), prediction(text="")).kinds == {"same text"}


def values(measure: PhrasesMeasure) -> dict[str, float]:
    weights = np.ones(len(measure.box_hits))
    return {metric.name: metric.value(weights) for metric in measure.metrics()}


def test_best_answer_to_a_phrase_counts() -> None:
    measure = PhrasesMeasure()
    truth = PhrasesTruth((TruePhrase("left dog", BOX), TruePhrase("car", BOX)))
    better = detection("Left dog", (0.0, 0.0, 10.0, 5.0), 0.9)  # IoU one half
    worse = [detection("left dog", FAR, 0.2), detection("left dog", FAR, None)]
    answers = [*worse, better, detection("car", FAR)]
    outcome = measure.add(truth, prediction(answers))
    assert values(measure) == {"accuracy at IoU 0.5": 0.5}
    assert outcome.error == 0.5
    assert outcome.kinds == {"right", "badly placed"}
    assert measure.add(truth, prediction()).kinds == {"missed"}
    assert values(measure) == {"accuracy at IoU 0.5": 0.25}


def test_mask_of_a_phrase_is_judged_by_pixels() -> None:
    truth = PhrasesTruth((TruePhrase("car", BOX, RING), TruePhrase("dog", BOX)))
    items = [Instance(BOX, "car", 0.9, (HALF,)), Instance(FAR, "dog", 0.9, (HALF,))]
    assert PhrasesMeasure().add(truth, prediction(items)).true_kinds == ["right", "badly placed"]
    measure = PhrasesMeasure()
    for answers in (items[:1], []):
        measure.add(PhrasesTruth((TruePhrase("car", None, RING),)), prediction(answers))
    assert values(measure) == {"mask mIoU": pytest.approx(0.25)}


def test_run_is_written_without_credentials() -> None:
    settings = {"split": ["a", "b"], "sample": "", "temperature": 0.0}
    record = run_record("http://user:secret@host:1/", settings, [], {"x left out": 2, "y": 0})
    assert record.pop("date").startswith("20")
    options = {"split": "a,b", "temperature": "0.0", "x left out": "2"}
    assert record == {"service": "http://host:1", **options}


def test_form_with_the_least_error_is_chosen(tmp_path: Path) -> None:
    """An image without an answer in one form counts in none."""
    forms = [{}, {"car": "auto"}, {"car": "vehicle"}]
    request = TaskParameters(labels=("car",))
    truth = ObjectsTruth((TrueObject("car", BOX),))
    images = [ImageFile(f"{number}.png", 1, 1) for number in range(3)]
    samples = [Sample(image, (request,), truth) for image in images]
    is_right = {"car": (0, 1, None), "auto": (0, 1, 1), "vehicle": (1, 1, 0)}
    right = DetectionsResult((detection("car", BOX),))
    with AnswerLog.open(tmp_path / "answers.jsonl", "t", AnswerOptions()) as log:
        for form in forms:
            log.forms["m"] = form
            for index, (image, job) in enumerate(log.requests(samples, "m")):
                (label,) = job.parameters.labels or ()
                if (is_found := is_right[label][index]) is not None:
                    log.append(image, job, answer(right if is_found else NOTHING))
        assert best_form(log, samples, "m", NAMES, forms[:2]) == {}  # of equal ones the first
        assert best_form(log, samples, "m", NAMES, forms) == {"car": "vehicle"}
        assert best_form(log, samples[2:], "m", NAMES, forms) == {}
