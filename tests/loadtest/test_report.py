from pathlib import Path

import pytest

from loadtest.bench import Skipped
from loadtest.markdown import percent, shown, table
from loadtest.plot import write_plot
from loadtest.report import markdown
from loadtest.run import Run, as_json
from loadtest.stages import STAGES, profile_of
from tests.support.bench_rounds import PEER, one_round, run, sample, stand


def small_run() -> Run:
    fast, slow = [one_round([sample(0.1)] * 10)], [one_round([sample(0.2)] * 8, is_cut=True)]
    ours = stand("florence-2-mini", {"mixed": fast, "single": slow})
    peer = stand("florence-2-mini", {"mixed": slow, "single": fast}, PEER)
    return run(ours, peer)


def test_a_missed_target_is_said_to_be_missed() -> None:
    rows = [line for line in markdown(small_run()).splitlines() if line.startswith("| (a) mixed")]
    assert rows == [
        "| (a) mixed | florence-2-mini | requests/s | 10.0 | 8.00 | litserve 16 | 1.25 | ≥ 2 | **missed** |"
    ]


def test_a_cut_round_and_a_server_that_was_not_run_are_said() -> None:
    full = small_run()
    text = markdown(Run(full.models, full.stands, full.facts, skipped=[Skipped("paligemma-mini", "fastapi", "late")]))
    assert "- florence-2-mini, diptych, single: a round was cut at its time limit" in text
    assert "- paligemma-mini, fastapi: late" in text


def test_json_has_every_ratio_and_every_server() -> None:
    written = as_json(small_run())
    assert [(one["ratio"], one["is_met"]) for one in written["comparisons"]] == [(1.25, False), (2.0, False)]
    assert [server["server"] for server in written["servers"]] == ["diptych", "litserve 16"]


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    write_plot(small_run(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_stages_and_what_is_between_them_add_up_to_the_latency() -> None:
    profile = profile_of([sample(0.05), sample(0.03)])
    assert sum(profile.stages_ms.values()) == pytest.approx(profile.latency_ms)
    assert profile.stages_ms["between"] == pytest.approx(2)
    assert profile.stages_ms["http"] == pytest.approx(40 - len(STAGES) - 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (1234.5, "1234"), (12.34, "12.3"), (0.01234, "0.0123"), (float("nan"), "-"), (-2.5, "-2.50")],
)
def test_three_digits_are_shown(value: float, expected: str) -> None:
    assert shown(value) == expected


@pytest.mark.parametrize(("value", "expected"), [(0.618, "62 %"), (0.0284, "2.8 %"), (1.5, "150 %")])
def test_small_percentages_have_a_decimal(value: float, expected: str) -> None:
    assert percent(value) == expected


def test_columns_after_the_first_are_aligned_to_the_right() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n|---|---:|\n| 1 | 2 |"
