"""The answers of an evaluation: what is asked, kept and joined."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client import AnswerOptions, AsyncClient, DetectionsResult, TaskParameters, TextResult
from diptych_client.evaluation.questions import (
    WITHOUT_TILES,
    AnswerLog,
    Asker,
    ModelRequest,
    Sample,
)
from diptych_client.inputs import Folder, ImageFile
from diptych_client.long_runs import FailureLog
from tests.support.client_answers import INSTANCES, answer
from tests.support.evaluations import detection
from tests.support.scripted_services import Refusal, Script, scripted

OPTIONS = AnswerOptions()
BOX = (0.0, 0.0, 5.0, 5.0)


def sample(name: str, *requests: TaskParameters) -> Sample:
    return Sample(ImageFile(name, 1, 1), requests or (TaskParameters(),), None)


def ask(folder: Path, samples: Sequence[Sample], url: str, models: Sequence[str] = ("m",)) -> int:
    """Send unanswered requests; return the number of failures."""

    async def run(asker: Asker) -> None:
        async with AsyncClient(url, max_retries=0) as client:
            for model in models:
                await asker.ask(client, samples, model, lambda: None)

    log_path = folder / "out" / "answers.jsonl"
    with (
        AnswerLog.open(log_path, "ocr", OPTIONS) as log,
        FailureLog(folder / "out" / "failures.jsonl") as failures,
    ):
        asyncio.run(run(Asker(Folder(folder), log, failures, concurrency=2)))
    return failures.num_failures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(6):
        (tmp_path / f"{index}.png").write_bytes(b"\xff\xd8\xff any bytes of a JPEG")
    return tmp_path


def asked(folder: Path, samples: Sequence[Sample], models: Sequence[str] = ("m",)) -> Script:
    with scripted("rest", []) as (url, script):
        ask(folder, samples, url, models)
    return script


def test_nothing_is_asked_twice(folder: Path) -> None:
    samples = [sample(f"{index}.png") for index in range(6)]
    assert len(asked(folder, samples[:4], models=("m", "n")).received) == 8
    assert len(asked(folder, samples, models=("m", "n")).received) == 4
    assert len(asked(folder, samples, models=("m", "n")).received) == 0


def test_an_answer_that_was_being_written_is_asked_again(folder: Path) -> None:
    samples = [sample(f"{index}.png") for index in range(3)]
    asked(folder, samples)
    log = folder / "out" / "answers.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    assert len(asked(folder, samples).received) == 1


@pytest.mark.parametrize(
    "other",
    [
        replace(sample("0.png"), image=ImageFile("0.png", 1, 2)),
        sample("1.png"),
        sample("0.png", TaskParameters(detail="detailed")),
    ],
)
def test_another_image_or_parameter_is_another_question(folder: Path, other: Sample) -> None:
    asked(folder, [sample("0.png")])
    assert len(asked(folder, [other]).received) == 1


def test_a_failure_is_listed_and_asked_again(folder: Path) -> None:
    samples = [sample("0.png"), sample("missing.png")]
    with scripted("rest", [Refusal("overloaded")]) as (url, _):
        assert ask(folder, samples, url) == 2
        lines = (folder / "out" / "failures.jsonl").read_text().splitlines()
        listed = {line["image"]: (line["model"], line["code"]) for line in map(json.loads, lines)}
        assert listed == {"0.png": ("m", "overloaded"), "missing.png": ("m", "unreadable_file")}
        assert ask(folder, samples, url) == 1


def test_the_answers_to_several_requests_are_joined(tmp_path: Path) -> None:
    first = detection("car", BOX)
    second = detection("dog", BOX)
    both = sample("a.png", TaskParameters(labels=("car",)), TaskParameters(labels=("dog",)))
    with AnswerLog.open(tmp_path / "answers.jsonl", "open_vocabulary_detection", OPTIONS) as log:
        questions = list(log.requests([both], "m"))
        log.append(questions[0], answer(DetectionsResult((first,))), 0.5, 2)
        assert log.prediction(both, "m") is None
        log.append(questions[1], answer(DetectionsResult((second,))), 0.7, 2)
        found = log.prediction(both, "m")
    assert found is not None
    assert found.items == (first, second)
    assert found.latency_s == pytest.approx(1.2)
    assert found.occupied_s == pytest.approx(0.6)
    assert found.num_tokens == 2


def test_an_instance_has_the_label_of_the_phrase_that_was_asked(tmp_path: Path) -> None:
    one = sample("a.png", TaskParameters(phrase="dog"))
    with AnswerLog.open(tmp_path / "answers.jsonl", "instance_segmentation", OPTIONS) as log:
        (question,) = log.requests([one], "m")
        log.append(question, answer(INSTANCES), 0.5, 1)
        found = log.prediction(one, "m")
    assert found is not None
    assert [getattr(item, "label", None) for item in found.items] == ["dog", "dog"]


def test_a_model_without_tiles_is_another_question_about_the_same_model(tmp_path: Path) -> None:
    options = AnswerOptions(tiles="auto", overlap=0.1, min_score=0.5)
    with AnswerLog.open(tmp_path / "answers.jsonl", "object_detection", options) as log:
        (tiled,) = log.requests([sample("a.png")], "m")
        (untiled,) = log.requests([sample("a.png")], f"m{WITHOUT_TILES}")
    assert (tiled.model, untiled.model) == ("m", "m")
    assert (tiled.options, untiled.options) == (options, AnswerOptions(min_score=0.5))
    assert tiled.key != untiled.key


def test_a_text_is_kept(tmp_path: Path) -> None:
    one = sample("a.png")
    with AnswerLog.open(tmp_path / "answers.jsonl", "ocr", OPTIONS) as log:
        (question,) = log.requests([one], "m")
        assert isinstance(question, ModelRequest)
        log.append(question, answer(TextResult("größer\n円")), 0.5, 1)
    with AnswerLog.open(tmp_path / "answers.jsonl", "ocr", OPTIONS) as log:
        found = log.prediction(one, "m")
    assert found is not None
    assert found.text == "größer\n円"
