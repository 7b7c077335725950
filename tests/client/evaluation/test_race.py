"""The better of two models, at any stopping time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import pytest

from diptych_client import AnswerOptions, AsyncClient, DetectionsResult, TaskParameters
from diptych_client.evaluation.dataset import Dataset, LabelledImage, TrueObject
from diptych_client.evaluation.evaluator import Race, decide, shuffled
from diptych_client.evaluation.questions import (
    AnswerLog,
    Asker,
    ClassNames,
    ObjectsTruth,
    Sample,
)
from diptych_client.evaluation.statistics import DIFFERENCE_BETS, log_wealth
from diptych_client.inputs import Folder, ImageFile
from diptych_client.long_runs import FailureLog, RunError
from tests.support.client_answers import answer
from tests.support.evaluations import detection

BOX = (0.0, 0.0, 10.0, 10.0)
NAMES = ClassNames(("car",), {"car": "car"})
RIGHT = DetectionsResult((detection("car", BOX),))
WRONG = DetectionsResult(())


def told_apart(first: list[float], second: list[float], num_looks: int) -> bool:
    """Return whether growing numbers of images ever decide."""
    errors = list(zip(first, second, strict=True))
    for look in range(1, num_looks + 1):
        if decide(errors[: len(errors) * look // num_looks], None) is not None:
            return True
    return False


def test_equal_models_are_rarely_told_apart() -> None:
    rng = np.random.default_rng(0)
    num_told_apart = 0
    for _ in range(200):
        first, second = (rng.random((2, 120)) < 0.3).astype(float).tolist()
        num_told_apart += told_apart(first, second, 12)
    assert num_told_apart <= 0.05 * 200


@pytest.mark.long
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_of_a_thousand_equal_pairs_few_are_told_apart(rate: float) -> None:
    """Look after every 5 of 600 images."""
    rng = np.random.default_rng(1)
    num_told_apart = 0
    for _ in range(1000):
        first, second = (rng.random((2, 600)) < rate).astype(float).tolist()
        num_told_apart += told_apart(first, second, 120)
    print(f"error {rate}: {num_told_apart} of 1000 told apart")
    assert num_told_apart <= 50


@pytest.mark.parametrize("better", ["first", "second"])
def test_decision_needs_half_the_level(better: str) -> None:
    """Two ways to be wrong share it: the wealth must reach 40, not 20."""
    signs = {"first": (0.0, 1.0), "second": (1.0, 0.0)}
    decision = None
    num_images = 0
    while decision is None:
        num_images += 1
        decision = decide([signs[better]] * num_images, None)
    assert (decision.verdict, decision.num_images) == (better, num_images)
    gains = np.full((num_images, 1), -1.0)
    for count, is_enough in ((num_images, True), (num_images - 1, False)):
        (logarithm,) = log_wealth(gains[:count], np.ones(1), DIFFERENCE_BETS)
        assert (logarithm >= log(40)) == is_enough
    assert decision.sentence(("A", "B"), 99).startswith(
        f"{'A' if better == 'first' else 'B'} is better: decided after {num_images} of 99 images"
    )


def test_equal_models_need_a_margin() -> None:
    errors = [(0.2, 0.2)] * 500
    assert decide(errors, None) is None
    decision = decide(errors, 0.02)
    assert decision is not None
    assert (decision.verdict, decision.difference) == ("equal", 0)
    assert "A and B are equal: decided" in decision.sentence(("A", "B"), 500)
    assert decide(errors[:50], 0.02) is None
    rng = np.random.default_rng(0)
    first = (rng.random(500) < 0.5).astype(float)
    differing = [(error, max(error - 0.02, 0.0)) for error in first.tolist()]
    decision = decide(differing, 0.01)
    assert decision is None or decision.verdict == "second"


def sample(number: int, has_truth: bool = True) -> Sample:
    truth = ObjectsTruth((TrueObject("car", BOX),)) if has_truth else None
    return Sample(ImageFile(f"{number}.png", 1, 1), (TaskParameters(),), truth)


def raced(
    folder: Path,
    samples: Sequence[Sample],
    is_right: Callable[[int, str], bool | None],
    concurrency: int = 5,
) -> tuple[Race, int]:
    """Run a race over answers that are in the log; return it and the number of samples sent.

    An answer is missing where `is_right` of image and model is None.
    """
    (folder / "out").mkdir()
    with (
        AnswerLog.open(folder / "out" / "answers.jsonl", "t", AnswerOptions()) as log,
        FailureLog(folder / "out" / "failures.jsonl") as failures,
    ):
        for model in ("A", "B"):
            for index, (image, job) in enumerate(log.requests(samples, model)):
                if (right := is_right(index, model)) is not None:
                    log.append(image, job, answer(RIGHT if right else WRONG), 0.1, 1)
        race = Race(Asker(Folder(folder), log, failures, concurrency), ("A", "B"), NAMES, None)

        async def run() -> list[Sample]:
            async with AsyncClient("http://127.0.0.1:9", max_retries=0) as client:
                return await race.run(client, samples, lambda: None)

        return race, len(asyncio.run(run()))


def test_race_ends_when_decided(tmp_path: Path) -> None:
    samples = [sample(number) for number in range(60)]
    race, num_sent = raced(tmp_path, samples, lambda _, model: model == "A")
    assert race.decision is not None
    assert race.decision.num_images == num_sent < 60
    assert num_sent % 5 == 0  # looks after each batch
    assert race.sentence(60).startswith(f"A is better: decided after {num_sent} of 60 images")


def test_race_leaves_out_incomplete_images(tmp_path: Path) -> None:
    """An image that one model did not answer wholly counts for neither; an image counts once."""
    samples = [sample(0), replace(sample(0), requests=(TaskParameters(detail="short"),))]
    samples += [sample(1), replace(sample(1, False), requests=(TaskParameters(detail="short"),))]
    samples += [sample(number) for number in range(2, 6)]
    race, num_sent = raced(
        tmp_path, samples, lambda index, model: None if index == 1 and model == "B" else True
    )
    assert (race.errors, num_sent) == ([(0.0, 0.0)] * 5, 8)
    assert race.sentence(6) == "A and B are not told apart by 5 images"


def test_race_needs_labels(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="--until-decided needs labels: no answered image has any"):
        raced(tmp_path, [sample(0, False)], lambda *_: True)


def test_images_are_shuffled_by_the_seed() -> None:
    images = [LabelledImage(ImageFile(str(number), 1, 1)) for number in range(9)]
    dataset = Dataset(images, Folder(Path()))
    first = shuffled(dataset, 1)
    assert first == shuffled(dataset, 1) != shuffled(dataset, 2)
    assert sorted(image.image.name for image in first.images) == [str(n) for n in range(9)]
