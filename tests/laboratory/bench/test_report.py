from dataclasses import replace
from pathlib import Path

from laboratory.bench.bench import Skipped
from laboratory.bench.report import markdown, write_plot
from laboratory.bench.results import Run, as_json
from tests.support.bench_rounds import PEER, measurement, one_round, run, sample


def small_run() -> Run:
    fast = [one_round([sample(0.1)] * 10)]
    slow = [one_round([sample(0.2)] * 8, is_cut=True)]
    ours = measurement("paligemma-mini", {"mixed": fast, "single": slow})
    peer = measurement("paligemma-mini", {"mixed": slow, "single": fast}, PEER)
    return run(ours, peer)


def test_a_missed_target_is_marked() -> None:
    rows = [line for line in markdown(small_run()).splitlines() if line.startswith("| (a) mixed")]
    assert rows == [
        "| (a) mixed | paligemma-mini | requests/s | 10.0 | 8.00 | litserve 16 | 1.25 | ≥ 1.35 |"
        " **missed** |"
    ]


def test_cut_rounds_and_skipped_servers_are_listed() -> None:
    text = markdown(replace(small_run(), skipped=[Skipped("paligemma-mini", "fastapi", "late")]))
    assert "- paligemma-mini, diptych, single: a round was cut at its time limit" in text
    assert "- paligemma-mini, fastapi: late" in text


def test_json_has_every_ratio_and_every_server() -> None:
    written = as_json(small_run())
    assert [(one["ratio"], one["is_met"]) for one in written["comparisons"]] == [
        (1.25, False),
        (2.0, False),
    ]
    assert [server["server"] for server in written["servers"]] == ["diptych", "litserve 16"]


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    write_plot(small_run(), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
