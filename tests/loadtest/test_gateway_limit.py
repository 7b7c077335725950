import pytest

from loadtest.gateway_limit import measure, report
from tests.support.export_cli import ModelStore


def test_a_gateway_over_a_simulated_runner_is_measured(
    exported: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(exported.home))
    rounds = measure(num_workers=2, num_rounds=1, round_s=1)
    assert rounds[0].requests_per_s > 5
    assert 0 < rounds[0].cpu_s_per_s < 3
    assert len(rounds[0].shares) == 2
    assert 0.2 < min(rounds[0].shares) <= max(rounds[0].shares) < 0.8
    assert report(2, rounds).startswith("gateway processes: 2; ")
