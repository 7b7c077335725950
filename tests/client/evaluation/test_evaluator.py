"""The images that are evaluated, the gallery, phrases, and the agreement of two models."""

from pathlib import Path

import numpy as np
import pytest

from diptych_client import AnswerOptions, DetectionsResult, TaskParameters
from diptych_client.evaluation.dataset import Dataset, LabelledImage, TrueObject, TruePhrase
from diptych_client.evaluation.evaluator import (
    Evaluation,
    Evaluator,
    PairAgreement,
    PhrasesMeasure,
    RunRecord,
    judge_phrases,
    sampled,
)
from diptych_client.evaluation.questions import (
    WITHOUT_TILES,
    AnswerLog,
    ClassNames,
    PhrasesTruth,
    Prompts,
    Questionnaire,
    Sample,
    TextsTruth,
)
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import Folder, ImageFile
from diptych_client.long_runs import FailureLog, RunError
from diptych_client.results import Instance
from tests.support.client_answers import answer
from tests.support.evaluations import SIZE, detection, prediction

BOX: BoxXyxy = (0.0, 0.0, 10.0, 10.0)
FAR: BoxXyxy = (50.0, 50.0, 60.0, 60.0)
LARGE: BoxXyxy = (10.0, 10.0, 50.0, 50.0)
RING = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
HALF = ((0.0, 0.0), (10.0, 0.0), (10.0, 5.0), (0.0, 5.0))


def dataset(num_images: int) -> Dataset:
    objects = (TrueObject("car", LARGE),)
    images = [LabelledImage(ImageFile(f"{i:02}.png", 1, 1), objects) for i in range(num_images)]
    return Dataset(images, Folder(Path()), ("car",))


def test_images_are_drawn_by_seed_in_order() -> None:
    whole = dataset(20)
    draws = []
    for seed in (1, 1, 2):
        draws.append([image.image.name for image in sampled(whole, 8, seed).images])
    assert len(set(draws[0])) == 8
    assert draws[0] == sorted(draws[0]) == draws[1] != draws[2]
    for number in (None, 20, 21):
        assert sampled(whole, number, seed=1) == whole


def evaluated(folder: Path, num_wrong: dict[str, list[int]]) -> Evaluation:
    """Evaluate models that find each object, and some boxes beside it in each image.

    A negative number is no answer.
    """
    labelled = dataset(len(next(iter(num_wrong.values()))))
    questionnaire = Questionnaire("object_detection", TaskParameters(), Prompts(), labelled.classes)
    samples = list(questionnaire.samples(labelled))
    with AnswerLog.open(folder / "answers.jsonl", "object_detection", AnswerOptions()) as log:
        for model, numbers in num_wrong.items():
            for (image, job), number in zip(log.requests(samples, model), numbers, strict=True):
                boxes = (detection("car", LARGE), *[detection("car", FAR)] * number)
                if number >= 0:
                    log.append(image, job, answer(DetectionsResult(boxes), SIZE), 0.1 + number, 2)
        evaluator = Evaluator(log, tuple(num_wrong), questionnaire.names)
        return evaluator.evaluate("d", samples, seed=0, gallery=3)


def test_gallery_has_worst_samples_first(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path, {"model": [0, 3, 1, 5, -1, 2]})
    assert [ranked.sample_index for ranked in evaluation.gallery] == [3, 1, 5]
    assert evaluation.agreed is None
    assert (evaluation.num_samples, evaluation.num_unanswered) == (5, 1)
    speed = evaluation.speed["model"]
    assert speed["latency_p50_ms"] == pytest.approx(2100)
    assert speed["images_per_s"] == pytest.approx(5 / (11.5 / 2))


def test_gallery_prefers_different_models(tmp_path: Path) -> None:
    evaluation = evaluated(tmp_path, {"first": [0, 5, 5, 0], "second": [0, 5, 0, 1]})
    assert [ranked.sample_index for ranked in evaluation.gallery] == [2, 3, 1]
    assert evaluation.gallery[2].difference == 0


def test_sizes_are_compared_without_tiles(tmp_path: Path) -> None:
    measured = evaluated(tmp_path, {"m": [0, 0], f"m{WITHOUT_TILES}": [0, 0]}).measured
    assert measured is not None
    sizes = [name for name in measured.intervals["m"] if name.startswith("mAP ")]
    assert sizes == ["mAP medium"]
    assert measured.intervals["m"]["mAP medium"].value == pytest.approx(100)


def test_agreement_is_of_all_images(tmp_path: Path) -> None:
    agreed = evaluated(tmp_path, {"first": [0, 0], "second": [0, 2]}).agreed
    assert agreed is not None
    # 2 · 1 / (1 + 1) and 2 · 1 / (1 + 3)
    assert agreed.intervals["first and second"]["agreement"].value == 75


def test_truths_of_two_kinds_are_refused(tmp_path: Path) -> None:
    requests = (TaskParameters(),)
    truths = (PhrasesTruth((TruePhrase("car", BOX),)), TextsTruth(("a",)))
    samples = [Sample(ImageFile("a.png", 1, 1), requests, truth) for truth in truths]
    with AnswerLog.open(tmp_path / "answers.jsonl", "t", AnswerOptions()) as log:
        for image, job in log.requests(samples[:1], "m"):
            log.append(image, job, answer(DetectionsResult(())), 0.1, 1)
        with pytest.raises(RunError, match=r"a\.png: t cannot measure phrases and objects in one"):
            Evaluator(log, ("m",), ClassNames((), {})).evaluate("d", samples, 0, 1)


def test_boxes_agree_by_class_and_place() -> None:
    pair = PairAgreement("A", "B", ClassNames((), {"auto": "car"}))
    first = prediction([detection("car", BOX), detection("dog", FAR)])
    second = [detection("Auto", BOX), detection("cat", FAR), detection("dog", BOX)]
    outcome = pair.add(first, prediction(second))
    counts = {"both": 0, "only_first": 0, "only_second": 0, "other_label": 0}
    dogs = counts | {"only_second": 1, "other_label": 1}
    expected = {"car": counts | {"both": 1}, "dog": dogs}
    assert pair.by_class() == expected
    assert outcome.error == 1 - 2 / 5
    assert outcome.kinds == {"found by both", "other label", "only B"}
    assert pair.add(prediction(), prediction()).error == 0
    assert pair.add(prediction([detection("car", BOX)]), prediction()).kinds == {"only A"}
    assert pair.scores == [pytest.approx(2 / 5), 1, 0]


def test_texts_agree_by_edit_distance() -> None:
    pair = PairAgreement("A", "B", ClassNames((), {}))
    assert pair.add(prediction(text="abcd"), prediction(text="abcx")).error == 0.25
    assert pair.add(prediction(text=""), prediction(text="")).kinds == {"same text"}


def values(measure: PhrasesMeasure) -> dict[str, float]:
    weights = np.ones(len(measure.box_hits))
    return {metric.name: metric.value(weights) for metric in measure.metrics()}


def test_best_answer_to_a_phrase_counts() -> None:
    measure = PhrasesMeasure()
    truth = PhrasesTruth((TruePhrase("left dog", BOX), TruePhrase("car", BOX)))
    better = detection("Left dog", (0.0, 0.0, 10.0, 5.0), 0.9)  # IoU one half
    answers = [detection("left dog", FAR, 0.2), better, detection("car", FAR)]
    outcome = measure.add(truth, prediction(answers))
    assert values(measure) == {"accuracy at IoU 0.5": 0.5}
    assert outcome.error == 0.5
    assert outcome.kinds == {"right", "badly placed"}
    assert measure.add(truth, prediction()).kinds == {"missed"}
    assert values(measure) == {"accuracy at IoU 0.5": 0.25}


def test_mask_of_a_phrase_is_judged_by_pixels() -> None:
    truth = PhrasesTruth((TruePhrase("car", BOX, RING), TruePhrase("dog", BOX)))
    items = [Instance(BOX, "car", 0.9, (HALF,)), Instance(FAR, "dog", 0.9, (HALF,))]
    kinds = [phrase.kind for phrase in judge_phrases(truth, prediction(items))]
    assert kinds == ["right", "badly placed"]
    measure = PhrasesMeasure()
    for answers in (items[:1], []):
        measure.add(PhrasesTruth((TruePhrase("car", None, RING),)), prediction(answers))
    assert values(measure) == {"mask mIoU": pytest.approx(0.25)}


def test_run_is_written_as_typed(tmp_path: Path) -> None:
    request = TaskParameters(labels=("car", "red bus"))
    samples = [Sample(ImageFile("a.png", 1, 1), (request,), None)] * 2
    settings = {"split": ["a", "b"], "sample": ""}
    url = "http://user:secret@host:1/"
    with FailureLog(tmp_path / "failures.jsonl") as failures:
        record = RunRecord.of(url, settings, [], samples, failures, {"x left out": 2})
    rows = dict(record.rows())
    assert rows.pop("date").startswith("20")
    assert rows == {
        "service": "http://host:1",
        "split": "a,b",
        "requests": "labels=car,red bus",
        "problems of the dataset": "2 x x left out",
    }
