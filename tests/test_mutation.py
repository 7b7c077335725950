"""The score of the mutation tests, which `make test-long` runs over a sample."""

import json
from pathlib import Path

from tests.support.mutation import results, summary


def test_mutants_without_a_failed_test_live(tmp_path: Path) -> None:
    codes = {"tasks.a.x__mutmut_3": 1, "tasks.a.x__mutmut_13": 0, "tasks.b.y__mutmut_3": 33, "tasks.a.z__mutmut_4": 0}
    (tmp_path / "a.py.meta").write_text(json.dumps({"exit_code_by_key": codes | {"tasks.a.x__mutmut_23": None}}))
    (tmp_path / "b.py.meta").write_text(json.dumps({"exit_code_by_key": {"runners.decoder.c__mutmut_3": -24}}))
    text, share = summary(list(results(tmp_path, ["3"])))
    assert share == 0.5
    assert [line for line in text.splitlines() if line.startswith(("| r", "alive"))][1:] == [
        "| runners.decoder | 1 | 1 |",
        "alive: tasks.a.x__mutmut_13",
        "alive: tasks.b.y__mutmut_3",
    ]
