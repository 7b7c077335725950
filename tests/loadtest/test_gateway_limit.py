import pytest

from loadtest.gateway_limit import measure, report
from tests.support.export_cli import ModelStore


@pytest.mark.long
def test_a_gateway_over_a_simulated_runner_is_measured(
    exported: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BENTOML_HOME", str(exported.home))
    rounds = measure(num_workers=2, num_rounds=1, round_s=1)
    assert rounds[0].requests_per_s > 0
    assert rounds[0].cpu_s_per_s > 0
    assert len(rounds[0].shares) == 2
    assert 0 < sum(rounds[0].shares) < 1.001
    assert report(2, rounds).startswith("gateway processes: 2; ")
