"""The images that are evaluated, and the samples that are shown."""

from pathlib import Path

import pytest

from diptych_client import AnswerOptions, DetectionsResult, TaskParameters
from diptych_client.evaluation.dataset import Dataset, LabelledImage, TrueObject
from diptych_client.evaluation.evaluator import Evaluation, Evaluator, sampled
from diptych_client.evaluation.questions import WITHOUT_TILES, AnswerLog, Prompts, Questionnaire
from diptych_client.geometry import BoxXyxy
from diptych_client.inputs import Folder, ImageFile
from tests.support.client_answers import answer
from tests.support.evaluations import SIZE, detection

BOX: BoxXyxy = (10.0, 10.0, 50.0, 50.0)
BESIDE: BoxXyxy = (60.0, 60.0, 90.0, 70.0)


def dataset(num_images: int) -> Dataset:
    objects = (TrueObject("car", BOX),)
    images = [LabelledImage(ImageFile(f"{i:02}.png", 1, 1), objects) for i in range(num_images)]
    return Dataset(images, Folder(Path()), ("car",))


def names(given: Dataset) -> list[str]:
    return [each.image.name for each in given.images]


def test_images_are_drawn_by_the_seed_and_stay_in_their_order() -> None:
    whole = dataset(20)
    drawn = names(sampled(whole, 8, seed=1))
    assert len(set(drawn)) == 8
    assert (
        drawn
        == sorted(drawn)
        == names(sampled(whole, 8, seed=1))
        != names(sampled(whole, 8, seed=2))
    )


def test_all_images_are_kept_without_a_number_or_with_one_that_is_not_smaller() -> None:
    whole = dataset(20)
    assert (
        sampled(whole, None, seed=1)
        == sampled(whole, 20, seed=1)
        == sampled(whole, 21, seed=1)
        == whole
    )


def evaluated(folder: Path, num_wrong: dict[str, list[int]]) -> Evaluation:
    """Evaluate models that find each object, and as many boxes beside it as are given for each
    image.
    """
    labelled = dataset(len(next(iter(num_wrong.values()))))
    questionnaire = Questionnaire("object_detection", TaskParameters(), Prompts(), labelled.classes)
    samples = list(questionnaire.samples(labelled))
    with AnswerLog.open(folder / "answers.jsonl", "object_detection", AnswerOptions()) as log:
        for model, numbers in num_wrong.items():
            for question, number in zip(log.requests(samples, model), numbers, strict=True):
                found = (detection("car", BOX), *[detection("car", BESIDE)] * number)
                log.append(question, answer(DetectionsResult(found), SIZE), 0.1, 1)
        return Evaluator(log, tuple(num_wrong), questionnaire.names).evaluate(
            "d", samples, seed=0, gallery=3
        )


def test_the_gallery_has_the_most_wrong_samples_the_worst_first(tmp_path: Path) -> None:
    found = evaluated(tmp_path, {"model": [0, 3, 1, 5, 0, 2]})
    assert [each.sample_index for each in found.gallery] == [3, 1, 5]
    assert found.agreed is None


def test_a_model_with_and_without_tiles_is_compared_by_size(tmp_path: Path) -> None:
    measured = evaluated(tmp_path, {"m": [0, 0], f"m{WITHOUT_TILES}": [0, 0]}).measured
    assert measured is not None
    sizes = [name for name in measured.intervals["m"] if name.startswith("mAP ")]
    assert sizes == ["mAP medium"]
    assert measured.intervals["m"]["mAP medium"].value == pytest.approx(100)


def test_the_agreement_of_two_models_is_measured_on_all_images(tmp_path: Path) -> None:
    agreed = evaluated(tmp_path, {"first": [0, 0], "second": [0, 2]}).agreed
    assert agreed is not None
    # 2 · 1 / (1 + 1) and 2 · 1 / (1 + 3)
    assert agreed.intervals["first and second"]["agreement"].value == 75
