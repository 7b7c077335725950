from dataclasses import replace
from pathlib import Path

import pytest

from laboratory.bench.history import (
    HistoryRow,
    append_row,
    changes,
    history_table,
    ratios_of,
    read_history,
)
from laboratory.bench.results import Run, as_json
from laboratory.bench.short import short_report
from tests.support.bench_rounds import OTHER_PEER, PEER, measurement, one_round, run, sample

RATE = "(a) mixed | m | requests/s"
TIME = "(d) single | m | p50, ms"
BEFORE = HistoryRow(
    "aaaaaaa", "2026-11-01", "a machine", {RATE: {"litserve 16": 2.0, "fastapi": 4.0}}
)
SHORT_BEFORE = replace(
    BEFORE, ratios={"(a) mixed | florence-2-mini | requests/s": {"litserve 16": 1.0}}
)


def row(commit: str, **ratios: float) -> HistoryRow:
    return HistoryRow(commit, "2026-11-02", "a machine", {RATE: ratios})


def test_a_run_has_its_ratio_to_every_peer() -> None:
    fast = [one_round([sample(0.1)] * 10)]
    slow = [one_round([sample(0.4)] * 4)]
    written = as_json(
        run(
            measurement("florence-2-mini", {"mixed": fast, "single": fast}),
            measurement("florence-2-mini", {"mixed": slow}, PEER),
            measurement("florence-2-mini", {"mixed": fast, "single": slow}, OTHER_PEER),
        )
    )
    assert ratios_of(written) == {
        "(a) mixed | florence-2-mini | requests/s": {"litserve 16": 2.5, "fastapi": 1.0},
        "(d) single | florence-2-mini | p50, ms": {"fastapi": 0.25},
        "(a) mixed | florence-2-mini | CPU ms": {"litserve 16": 0.4, "fastapi": 1.0},
        "(d) single | florence-2-mini | CPU ms": {"fastapi": 0.4},
    }


def test_rows_are_appended_and_read_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    assert read_history(file) == ()
    rows = (BEFORE, replace(BEFORE, commit="bbbbbbb"))
    for each in rows:
        append_row(each, file)
    assert read_history(file) == rows


@pytest.mark.parametrize(
    ("name", "now", "is_worse"),
    [
        (RATE, 1.71, False),
        (RATE, 1.69, True),
        (RATE, 9.0, False),
        (TIME, 2.29, False),
        (TIME, 2.31, True),
    ],
)
def test_a_rate_is_worse_if_less_and_a_time_if_more(name: str, now: float, is_worse: bool) -> None:
    before = replace(BEFORE, ratios={name: {"fastapi": 2.0}})
    (change,) = changes({name: {"fastapi": now}}, [before])
    assert change.is_worse is is_worse


def test_a_ratio_is_compared_with_the_last_row_that_has_its_peer() -> None:
    history = [row("1", fastapi=1.0), row("2", fastapi=3.0), row("3", bentoml=5.0)]
    (change,) = changes({RATE: {"fastapi": 3.1}}, history)
    assert (change.row.commit, change.before, change.peers) == ("2", 3.0, "fastapi")
    assert list(changes({RATE: {"another": 3.1}}, history)) == []


def test_of_three_rows_the_median_is_the_one_before() -> None:
    history = [row("1", a=9.0), row("2", a=2.0), row("3", b=1.0), row("4", a=2.2), row("5", a=3.5)]
    (change,) = changes({RATE: {"a": 2.0}}, history)
    assert (change.before, change.row.commit, change.is_worse) == (2.2, "4", False)


def test_one_peer_of_three_that_became_faster_is_no_change_of_ours() -> None:
    history = [row("1", a=2.0, b=2.0, c=2.0)]
    (change,) = changes({RATE: {"a": 1.0, "b": 2.0, "c": 2.1}}, history)
    assert (change.now, change.is_worse) == (2.0, False)


def test_the_table_has_the_ratio_to_the_best_peer_and_marks_a_slower_run() -> None:
    slower = replace(
        BEFORE,
        commit="bbbbbbb",
        ratios={RATE: {"litserve 16": 1.5, "fastapi": 3.0}, TIME: {"fastapi": 0.5}},
    )
    assert history_table([BEFORE, slower]).splitlines()[2:] == [
        "| machine | a machine | a machine |",
        "| (a) mixed, m, requests/s | 2.00 | **1.50** |",
        "| (d) single, m, p50, ms |  | 0.50 |",
    ]


def measured(num_ours: int, num_peers: int) -> Run:
    """Return a run in which the processor time of a round is the same for both."""
    ours, peers = ([one_round([sample(0.1)] * number)] for number in (num_ours, num_peers))
    model = "florence-2-mini"
    return run(measurement(model, {"mixed": ours}), measurement(model, {"mixed": peers}, PEER))


def test_the_short_report_lists_what_is_worse() -> None:
    ratios = "ours ÷ litserve 16 0.40, before 1.00 at aaaaaaa of 2026-11-01 (a machine)"
    line = f"(a) mixed, florence-2-mini, requests/s: {ratios}"
    report = short_report(measured(4, 10), [SHORT_BEFORE], others_cores=0.1)
    assert report.splitlines() == [line, f"WORSE by more than 15%: {line}"]


def test_the_short_report_says_that_nothing_is_worse() -> None:
    report = short_report(measured(10, 10), [SHORT_BEFORE], others_cores=0.1)
    assert report.splitlines()[1:] == ["1 of 1 ratios judged, none worse by more than 15%"]


def test_amid_other_work_only_processor_time_is_judged() -> None:
    processor = {"(a) mixed | florence-2-mini | CPU ms": {"litserve 16": 2.0}}
    before = replace(SHORT_BEFORE, ratios={**SHORT_BEFORE.ratios, **processor})
    _, _, note, worse = short_report(measured(4, 10), [before], others_cores=1.5).splitlines()
    assert note == "other work took 1.5 cores: rates and times are not judged"
    assert worse.startswith(
        "WORSE by more than 15%: (a) mixed, florence-2-mini, CPU ms: ours ÷ litserve 16 2.50"
    )
