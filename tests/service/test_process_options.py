"""Options of runners, from the settings."""

from dataclasses import replace

import pytest

from service.inference.served_models import runner_options
from service.settings import read_settings
from tests.support.catalog import FLORENCE, PALIGEMMA
from wire.artifacts.adapter_folder import AdapterLimits
from wire.telemetry.tracing import TraceOptions

ENTRIES = (FLORENCE, PALIGEMMA)


@pytest.mark.parametrize(
    ("environment", "slots", "running"),
    [
        ({"DIPTYCH_DEVICE": "cpu"}, 16, 24),
        ({"DIPTYCH_DEVICE": "cuda"}, 64, 96),
        ({"DIPTYCH_DEVICE": "cpu", "DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:0"}, 64, 96),
        ({"DIPTYCH_DEVICE": "cuda", "DIPTYCH_DECODER_MAX_BATCH_SIZE": "8"}, 8, 12),
        ({"DIPTYCH_DEVICE": "cuda", "DIPTYCH_MAX_RUNNING_REQUESTS": "7"}, 64, 7),
    ],
)
def test_requests_in_flight_follow_the_slots(
    environment: dict[str, str], slots: int, running: int
) -> None:
    values = read_settings(environment)
    assert (values.max_slots, values.max_running) == (slots, running)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 2),
        ({"DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:0,{PALIGEMMA.id}=cuda:1"}, 1),
        ({"DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:1,{PALIGEMMA.id}=cuda:1"}, 2),
        ({"DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cuda:0"}, 2),
        ({"DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cpu"}, 1),
        ({"DIPTYCH_DEVICE": "auto", "DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cuda:0"}, 2),
        ({"DIPTYCH_RUNNER_URLS": f"{PALIGEMMA.id}=http://10.0.0.1:3000"}, 1),
    ],
)
def test_runners_of_one_gpu_share_its_memory(environment: dict[str, str], expected: int) -> None:
    options = runner_options(
        FLORENCE.id, read_settings({"DIPTYCH_DEVICE": "cuda", **environment}), ENTRIES
    )
    assert options.num_sharing_gpu == expected
    assert options.limits.num_slots == 0


def test_the_bounds_of_adapters_and_of_the_start_reach_the_runner() -> None:
    environment = {
        "DIPTYCH_MAX_ADAPTER_RANK": "8",
        "DIPTYCH_MAX_ADAPTER_MB": "2",
        "DIPTYCH_ADAPTERS_MB": "3",
    }
    options = runner_options(
        FLORENCE.id, read_settings({"DIPTYCH_START_TIMEOUT_S": "5", **environment}), ENTRIES
    )
    assert options.adapter_limits == AdapterLimits(
        max_rank=8, max_bytes=2_000_000, max_total_bytes=3_000_000
    )
    assert options.start_timeout_s == 5
    assert runner_options(FLORENCE.id, read_settings({}), ENTRIES).adapter_limits == AdapterLimits()


def test_a_runner_knows_the_aliases_of_its_model() -> None:
    entries = (PALIGEMMA, replace(FLORENCE, aliases=("an/alias",)))
    options = [runner_options(each.id, read_settings({}), entries) for each in entries]
    assert [each.aliases for each in options] == [(), ("an/alias",)]


def test_a_runner_sends_its_traces_where_the_gateway_does() -> None:
    environment = {"DIPTYCH_OTLP_ENDPOINT": "http://a:4318", "DIPTYCH_TRACE_SAMPLE": "0.5"}
    options = runner_options(FLORENCE.id, read_settings(environment), ENTRIES)
    assert options.traces == TraceOptions("http://a:4318", 0.5)
