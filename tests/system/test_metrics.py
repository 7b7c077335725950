"""The metrics of a known sequence of requests, from the gateway's own /metrics."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.export_cli import ModelStore
from tests.support.running_service import RunningService, forked_service
from tests.support.scene_images import scene_png

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"
STAGES = {
    "preprocess",
    "encode_queue",
    "encode",
    "decode_queue",
    "prefill",
    "decode",
    "postprocess",
}

Labels = frozenset[tuple[str, str]]


@pytest.fixture(scope="module")
def samples(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[Labels, float]]:
    """All samples by name and labels after: 3 captions compared, 2 detections, 1 bad request, 1
    unsupported task.
    """
    with (
        forked_service(
            exported.home, tmp_path_factory.mktemp("metrics") / "service.log"
        ) as service,
        service.client() as client,
    ):
        for _ in range(3):
            assert ask(client, "compare", task="captioning").status_code == 200
        for _ in range(2):
            assert ask(client, "predict", task="object_detection").status_code == 200
        assert ask(client, "predict", task="nonsense").status_code == 400
        assert ask(client, "predict", task="object_detection", model=PALIGEMMA).status_code == 422
        text = client.get("/metrics").text
    found: dict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = frozenset((k, v) for k, v in sample.labels.items() if k != "pid")
            found[sample.name][labels] = found[sample.name].get(labels, 0) + sample.value
    return found


def ask(client: httpx.Client, endpoint: str, **fields: str) -> httpx.Response:
    return client.post(f"/v1/{endpoint}", data=fields, files={"image": scene_png()})


def labels(**values: str) -> Labels:
    return frozenset(values.items())


def answered() -> Iterator[tuple[str, str, int]]:
    yield FLORENCE, "captioning", 3
    yield PALIGEMMA, "captioning", 3
    yield FLORENCE, "object_detection", 2


def test_requests_are_counted_by_model_task_and_status(
    samples: dict[str, dict[Labels, float]],
) -> None:
    expected = {labels(api="rest", model=m, task=t, status="ok"): n for m, t, n in answered()}
    expected[labels(api="rest", model="none", task="none", status="invalid_request")] = 1
    expected[
        labels(api="rest", model=PALIGEMMA, task="object_detection", status="unsupported_task")
    ] = 1
    assert samples["diptych_requests_total"] == expected


@pytest.mark.parametrize("name", ["request_seconds", "time_to_first_token_seconds"])
def test_every_answer_is_timed(samples: dict[str, dict[Labels, float]], name: str) -> None:
    counts = {labels(model=m, task=t): n for m, t, n in answered()}
    assert samples[f"diptych_{name}_count"] == counts
    assert all(samples[f"diptych_{name}_sum"][key] > 0 for key in counts)


def test_stages_and_tokens_of_every_answer_are_measured(
    samples: dict[str, dict[Labels, float]],
) -> None:
    stages = {labels(model=m, task=t, stage=s): n for m, t, n in answered() for s in STAGES}
    assert samples["diptych_stage_seconds_count"] == stages
    for model, task, count in answered():
        key = labels(model=model, task=task)
        assert samples["diptych_generated_tokens_total"][key] >= 2 * count
        assert samples["diptych_time_per_output_token_seconds_count"][key] == count
    for name in ("live_sequences", "slots_taken", "queue_depth"):
        assert set(samples[f"diptych_{name}"].values()) == {0}
    requests = samples["diptych_vision_cache_requests_total"]
    for model, num_answers in ((FLORENCE, 5), (PALIGEMMA, 3)):
        assert requests[labels(model=model, outcome="miss")] == 1
        assert requests[labels(model=model, outcome="hit")] == num_answers - 1


def test_batches_of_the_runners_are_seen_by_the_gateway(
    samples: dict[str, dict[Labels, float]],
) -> None:
    sums = samples["diptych_batch_size_sum"]
    tokens = samples["diptych_generated_tokens_total"]
    for model, num_answers in ((FLORENCE, 5), (PALIGEMMA, 3)):
        assert sums[labels(model=model, stage="encode")] == 1  # one image, encoded once
        num_tokens = sum(value for key, value in tokens.items() if ("model", model) in key)
        # A prefill gives a sequence its first token, a step one or, with a draft, a few; the
        # warm-up is beside these.
        assert sums[labels(model=model, stage="decode")] >= (num_tokens - num_answers) / 2


def test_paths_that_clients_write_leave_nothing_behind(service: RunningService) -> None:
    def size() -> int:
        with service.client() as client:
            return len(client.get("/metrics").content)

    maps = Path(f"/proc/{service.parts()['diptych']}/maps").read_text()
    mapped = re.search(r"(/\S+)/counter_diptych-0.db", maps)
    assert mapped is not None
    files = Path(mapped[1])
    before = size()
    num_bytes = sum(path.stat().st_size for path in files.iterdir())
    with service.client() as client:
        for number in range(50):
            assert client.get(f"/{number}/{'a' * 50_000}").status_code == 404
            assert client.get(f"/v1/models/{number}{'a' * 5_000}").status_code == 404
    assert size() < before + 10_000
    assert sum(path.stat().st_size for path in files.iterdir()) == num_bytes
