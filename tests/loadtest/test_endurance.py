"""Growth of lives, outcomes beside kills, and the check of an offline run's rows."""

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.endurance import (
    Outcomes,
    Run,
    Watch,
    growth,
    hostile,
    offline_faults,
    report,
)
from loadtest.senders import CONNECTION_FAILED, LEFT, OK, TIMED_OUT, WRONG_ANSWER, Reply


def watch_of(*lives: tuple[str, range, float]) -> Watch:
    """Return samples of processes: their counts, and the megabytes that each count adds."""
    samples = []
    for process, counts, slope in lives:
        for count in counts:
            use = {process: {"anonymous MB": 100 + slope * (count - counts[0])}}
            samples.append({"at_s": 0.0, "done": count, "use": use})
    return Watch(1.0, lambda: (0, {}), samples)


def test_growth_is_that_of_the_longest_life_after_its_warm_up() -> None:
    killed, restarted = (
        ("runner#1", range(0, 3000, 100), 1.0),
        ("runner#2", range(3000, 9000, 100), 2e-4),
    )
    watch = watch_of(killed, restarted, ("short#3", range(0, 1300, 100), 1.0))
    lives = watch.longest_lives(warm_up=1000)
    assert list(lives) == ["runner"]
    assert lives["runner"][0] == (4000, {"anonymous MB": 100.2})
    assert growth(lives["runner"], "anonymous MB") == pytest.approx(2.0)


@pytest.mark.parametrize(("slope", "num_passed"), [(0.9e-4, 0), (1.1e-4, 1)])
def test_passed_limit_is_reported(slope: float, num_passed: int) -> None:
    run = Run(watch_of(("runner#1", range(0, 9000, 100), slope)), {"rest: ok": 9}, [])
    lines, record = report("service", 9000, run)
    assert f"| runner, anonymous MB | 100.2 | {slope * 1e4:.2f} |" in lines[0].splitlines()
    assert len(record["passed limits"]) == num_passed


BUSY = Reply("not_ready", http_status=503, has_retry_after=True)
OUTCOMES = {
    "answered": ("rest", Reply(OK), OK, (True, True)),
    "left": ("stream left", Reply(LEFT), LEFT, (True, True)),
    "wrong": ("rest", Reply(OK), WRONG_ANSWER, (False, False)),
    "late": ("rest", Reply(TIMED_OUT), TIMED_OUT, (False, False)),
    "broken": ("rest", Reply(CONNECTION_FAILED), CONNECTION_FAILED, (False, True)),
    "not ready": ("rest", BUSY, "not_ready", (False, True)),
    "without a time": ("rest", Reply("not_ready", http_status=503), "not_ready", (False, False)),
    "internal": ("rest", Reply("internal", http_status=500), "internal", (False, False)),
    "overloaded": ("rest", Reply("", http_status=429, has_retry_after=True), "", (True, True)),
    "refused": ("hostile rest", Reply("", http_status=415), "", (True, True)),
    "hostile answered": ("hostile rest", Reply(OK), OK, (False, False)),
    "hostile failed": ("hostile rest", Reply("", http_status=500), "", (False, False)),
    "good refused": ("rest", Reply("", http_status=415), "", (False, False)),
}


@pytest.mark.parametrize("name", OUTCOMES)
@pytest.mark.parametrize("is_disturbed", [False, True])
def test_outcome_beside_a_kill(name: str, is_disturbed: bool) -> None:
    way, reply, status, are_right = OUTCOMES[name]
    now_s = time.monotonic()
    outcomes = Outcomes(disturbances=[now_s - 10 if is_disturbed else now_s - 20])
    outcomes.add(way, reply, status, now_s - 1)
    assert (not outcomes.faults) == are_right[is_disturbed]
    assert outcomes.replies.total() == 1


def row(key: str, text: str = "a circle", error: Any = None) -> dict[str, Any]:
    return {"key": key, "raw_text": text if error is None else None, "error": error}


SCENES = {"a.jpg": 0, "b.jpg": 0, "c.jpg": None}
ROWS = (row("a.jpg"), row("b.jpg"), row("c.jpg", error={"code": "unsupported_image"}))


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[:2],
        (*ROWS, ROWS[0]),
        (*ROWS, row("d.jpg", error={})),
        (ROWS[0], row("b.jpg", "a square"), ROWS[2]),
        (row("a.jpg", error={}), row("b.jpg", error={}), ROWS[2]),
        (*ROWS[:2], row("c.jpg")),
    ],
    ids=["missing", "twice", "unknown", "other text", "failed", "broken answered"],
)
def test_wrong_rows_are_faults(rows: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    for part, content in (("part-0.jsonl", ROWS), ("part-1.jsonl", ())):
        (tmp_path / part).write_text("\n".join(map(json.dumps, content)))
    assert offline_faults(tmp_path, SCENES) == []
    (tmp_path / "part-0.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert offline_faults(tmp_path, SCENES)


def test_hostile_bytes_vary() -> None:
    rng = random.Random(0)
    kinds = {hostile(rng, b"jpeg" * 100)[:4] for _ in range(100)}
    assert kinds >= {b"", b"jpeg", b"eg" + b"jp", b"\x89PNG"}
