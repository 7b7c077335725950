"""The evaluation against a service with true answers: its requests, retries and error handling."""

import subprocess
import sys
import time

import httpx
import pytest

from export.scenes import Scorecard
from laboratory.evaluation import CONDITIONS, evaluate, evaluation_scene
from laboratory.evaluation.client import MAX_ATTEMPTS
from tests.support.export_cli import ROOT
from tests.support.truthful_service import MODEL_ID, TruthfulService, serving


def evaluated(service: TruthfulService, num_clients: int = 1) -> Scorecard:
    with serving(service) as client:
        return evaluate(
            client, MODEL_ID, CONDITIONS[service.conditions[0]], service.num_scenes, num_clients
        )


def names(scorecard: Scorecard) -> set[str]:
    return {name for name, _ in scorecard.tallies}


def is_wrong_in_some(index: int, name: str) -> bool:
    return (index + len(name)) % 3 == 0


def test_every_tenth_scene_has_no_object_and_about_half_have_no_word() -> None:
    scenes = [evaluation_scene(index) for index in range(100)]
    assert [index for index, scene in enumerate(scenes) if not scene.objects] == list(
        range(9, 100, 10)
    )
    assert 40 <= sum(scene.word is None for scene in scenes) <= 60
    assert len({scene.seed for scene in scenes}) == 100


def test_true_answers_score_full_marks() -> None:
    scorecard = evaluated(TruthfulService(10), num_clients=2)
    assert {tally.f1 for tally in scorecard.tallies.values()} == {1.0}
    assert scorecard.tally("object_detection", "empty").num_expected == 1


def test_wrong_answer_lowers_the_score_of_its_question_only() -> None:
    scorecard = evaluated(
        TruthfulService(4, is_wrong=lambda index, name: index == 0 and name == "captioning short")
    )
    assert scorecard.tally("captioning short", "exact").f1 == 0.75
    assert scorecard.tally("captioning detailed", "exact").f1 == 1


def test_concurrent_clients_give_the_scorecard_of_one() -> None:
    one = evaluated(TruthfulService(4, is_wrong=is_wrong_in_some))
    four = evaluated(TruthfulService(4, is_wrong=is_wrong_in_some, num_together=4), num_clients=4)
    assert four == one
    assert 0 < one.tally("captioning short", "exact").f1 < 1


def test_no_request_is_sent_for_a_task_that_is_not_offered() -> None:
    service = TruthfulService(2, tasks=("ocr", "captioning"))
    assert {name.split(" ")[0] for name in names(evaluated(service))} == {"ocr", "captioning"}
    assert service.asked_tasks == {"ocr", "captioning"}


def test_variant_that_is_not_offered_is_skipped() -> None:
    service = TruthfulService(
        2, is_not_offered=lambda _, name: name == "instance_segmentation region"
    )
    found = names(evaluated(service))
    assert "instance_segmentation phrase" in found
    assert "instance_segmentation region" not in found


def test_refused_request_is_retried() -> None:
    service = TruthfulService(1, num_refused=3)
    easy = TruthfulService(1)
    assert evaluated(service) == evaluated(easy)
    assert service.num_received == easy.num_received + 3


def test_retry_waits_for_retry_after() -> None:
    start_s = time.monotonic()
    evaluated(TruthfulService(1, tasks=("ocr",), num_refused=1, retry_after_s=1))
    assert time.monotonic() - start_s >= 1


def test_number_of_retries_is_bounded() -> None:
    service = TruthfulService(1, num_refused=MAX_ATTEMPTS)
    with pytest.raises(
        RuntimeError, match=r"truthful answered captioning short with 429: .*too much"
    ):
        evaluated(service)
    assert service.num_received == MAX_ATTEMPTS


@pytest.mark.parametrize("num_clients", [1, 3])
def test_any_other_error_stops_the_evaluation(num_clients: int) -> None:
    service = TruthfulService(5, is_broken=lambda index, name: index == 1 and name == "ocr")
    with pytest.raises(RuntimeError, match=r"truthful answered ocr with 500: .*a defect"):
        evaluated(service, num_clients)


def test_unserved_model_is_refused_with_the_list_of_served_ones() -> None:
    with (
        serving(TruthfulService(1)) as client,
        pytest.raises(ValueError, match="not served; served models: truth"),
    ):
        evaluate(client, "other", CONDITIONS["plain"], 1)


def run_command(url: httpx.URL | str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "laboratory.evaluation", "--url", str(url), *arguments]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_command_prints_a_table_per_condition() -> None:
    conditions = "plain", "stretched"
    with serving(
        TruthfulService(2, conditions, is_wrong=lambda index, name: (index, name) == (1, "ocr"))
    ) as client:
        run = run_command(
            client.base_url, "--scenes", "2", "--clients", "2", "--conditions", *conditions
        )
    assert run.returncode == 0, run.stderr
    plain_heading, plain, stretched_heading, stretched = run.stdout.strip().split("\n\n")
    assert (plain_heading, stretched_heading) == ("plain, 2 scenes", "stretched, 2 scenes")
    assert plain == stretched
    assert "| ocr, exact: all images / images with a word | 0.50 / " in plain
    assert "truthful, stretched" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scenes", "0"), "must be at least 1; given: 0"),
        (("--clients", "-1"), "must be at least 1; given: -1"),
        (("--conditions", "foggy"), "invalid choice: 'foggy'"),
    ],
)
def test_invalid_arguments_are_refused(arguments: tuple[str, ...], message: str) -> None:
    run = run_command("http://127.0.0.1:1", *arguments)
    assert run.returncode == 2
    assert message in run.stderr
