import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from loadtest.replicas import Point, Round, efficiency, main, recorded, report, simulated
from tests.support.export_cli import ModelStore

# Of linear. Above 0.95 on a quiet machine; on two cores that others share, clients and gateway wait for theirs.
ENOUGH = 0.7


def point(num_replicas: int, *rates: float) -> Point:
    return Point(num_replicas, tuple(Round(rate, 0.5, 100) for rate in rates))


@pytest.mark.parametrize(
    ("num_replicas", "rates", "expected"), [(1, [2.0], 1.0), (4, [8.0], 1.0), (4, [4.0, 9.0, 6.0], 0.75)]
)
def test_efficiency_is_of_what_linear_growth_would_give(num_replicas: int, rates: list[float], expected: float) -> None:
    assert efficiency(point(num_replicas, *rates), point(1, 2.0)) == expected


def test_the_report_has_a_row_for_each_number_and_what_a_core_carries() -> None:
    text = report([point(1, 2.0), point(2, 3.0)], point(4, 50.0))
    assert "| 1 | 2.00 | 100 % | 50 % |" in text
    assert "| 2 | 3.00 | 75 % | 50 % |" in text
    assert "50.0 requests/s at 50 % of a core, so 100 with a core of its own" in text


def test_simulated_runners_work_on_as_many_calls_as_they_have_slots() -> None:
    def taken_s(port: int, path: str, num_calls: int) -> float:
        start_s = time.monotonic()
        with ThreadPoolExecutor(num_calls) as pool:
            urls = [f"http://127.0.0.1:{port}{path}"] * num_calls
            assert all(answer.is_success for answer in pool.map(httpx.post, urls))
        return time.monotonic() - start_s

    with simulated(1, encode_ms=100, write_ms=200) as ports:
        assert taken_s(ports.encoders[0], "/encode", 3) >= 0.3
        assert taken_s(ports.decoders[0], "/write", 4) >= 0.2
        assert taken_s(ports.decoders[0], "/write", 5) >= 0.4


def test_throughput_grows_with_replicas(
    exported: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(exported.home))
    quick = ("--encode-ms", "250", "--cycles", "2", "--rounds", "1")
    main(["--counts", "1,4,16", *quick, "--results", str(tmp_path)])
    assert "One gateway over runners that take no time" in capsys.readouterr().out
    points, most = recorded(tmp_path / "replicas.json")
    assert [each.num_replicas for each in points] == [1, 4, 16]
    assert all(efficiency(each, points[0]) >= ENOUGH for each in points), points
    assert most.requests_per_s > points[-1].requests_per_s
