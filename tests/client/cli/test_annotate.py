"""Runs of `diptych annotate`: notes, consensus, and what is refused before a file is written."""

import json
import sys
from pathlib import Path

import pytest

from tests.client.cli.conftest import Captured, Diptych, listings
from tests.support.client_answers import DETECTIONS, answer
from tests.support.scripted_services import Refusal, Script

BOXES = "detections"
LABELLED = ("--labelled", "x")


def annotate(
    diptych: Diptych,
    folder: Path,
    *words: object,
    models: tuple[str, ...] = ("a",),
    result: str = BOXES,
    script: Script | None = None,
) -> int:
    script = script or Script([answer(DETECTIONS)] * 6)
    script.listings = listings("t", result, *models)
    return diptych(script, "annotate", folder, "--task", "t", *words)


def test_quiet_prints_results_alone(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    for option, is_noted in (("--quiet", False), ("--overwrite", True)):
        out = folder.with_name(f"out{option}")
        assert annotate(diptych, folder, "--json", option, "--out", out) == 0
        printed = capsys.readouterr()
        counts = {"images": 3, "labelled": 3, "failed": 0, "left_out": {}}
        assert json.loads(printed.out) == {"dataset": f"{out}/annotations.json", **counts}
        assert bool(printed.err) == is_noted


def test_failures_are_counted_and_retried(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    script = Script([answer(DETECTIONS), Refusal("overloaded"), answer(DETECTIONS)])
    words = ("--concurrency", "1", "--max-retries", "0")
    assert annotate(diptych, folder, *words, script=script) == 1
    printed = capsys.readouterr().out
    assert f"2 of 3 images have answers; see {folder}-annotations/annotations.json" in printed
    assert "1 requests failed, see " in printed
    script = Script([answer(DETECTIONS)])
    assert annotate(diptych, folder, *words, script=script) == 0
    assert len(script.received) == 1
    assert "3 of 3 images have answers; see " in capsys.readouterr().out


def test_consensus_has_both_models(diptych: Diptych, folder: Path, capsys: Captured) -> None:
    words = ("--consensus", "--out", folder.with_name("out"))
    assert annotate(diptych, folder, *words, models=("a", "b", "c")) == 0
    assert (folder.with_name("out") / "review.json").is_file()
    printed = capsys.readouterr().out
    assert "0 images are to be reviewed, see " in printed
    assert " labels have two models' consent, which proves nothing: both may err alike" in printed
    script = Script([*[answer(DETECTIONS)] * 3, Refusal("overloaded"), *[answer(DETECTIONS)] * 2])
    cut = ("--consensus", "--out", folder.with_name("cut"), "--max-retries", 0)
    assert annotate(diptych, folder, *cut, models=("a", "b"), script=script) == 1
    assert "2 of 3 images have answers; see " in capsys.readouterr().out


def test_missing_extra_is_named(
    diptych: Diptych, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(sys.modules, "diptych_client.cli.guaranteed", None)
    assert annotate(diptych, folder, "--labelled", folder / "labels.jsonl") == 1
    assert "docs/client.md lists the extras" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "result", "message"),
    [
        ((), "text", "but the task's result is text: use --format csv or"),
        ((*LABELLED, "--format", "jsonl"), BOXES, "and --format is jsonl"),
        ((*LABELLED, "--thresholds", "y", "--per-class"), BOXES, "omit --per-class"),
        (("--per-class",), BOXES, "--thresholds and --split need --labelled"),
        (("--consensus",), BOXES, "--model must name two models with --consensus, else one"),
        (("--max-wrong", ".1"), BOXES, "--thresholds and --split need --labelled"),
        ((*LABELLED, "--accept-score", ".1"), BOXES, "omit --accept-score and"),
        ((*LABELLED, "--min-precision", ".9"), BOXES, "omit --accept-score and"),
        ((*LABELLED, "--thresholds", "y", "--consensus"), BOXES, "omit --consensus"),
        (("--out", "images/out"), BOXES, "must be outside the image folder images"),
        (("--out", "."), BOXES, "must be outside the image folder images"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    diptych: Diptych,
    folder: Path,
    words: tuple[str, ...],
    result: str,
    message: str,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    script = Script([])
    assert annotate(diptych, Path("images"), *words, result=result, script=script) == 1
    assert message in capsys.readouterr().err
    assert script.received == []
    assert [path.name for path in folder.parent.iterdir()] == ["images"]
