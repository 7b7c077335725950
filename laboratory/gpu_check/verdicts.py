"""A measurement with its aim."""

import json
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loadtest.figures import table

TRACEBACK = "traceback"  # not in the table
KERNELS = "kernel names"  # only in the report
_HIDDEN = {TRACEBACK, KERNELS}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check of one model."""

    check: str
    model: str
    measured: dict[str, Any]
    aim: str
    is_met: bool

    def line(self) -> str:
        """Return one line of JSON."""
        measured = {name: each for name, each in self.measured.items() if name != KERNELS}
        return json.dumps(asdict(self) | {"measured": measured})


def failed(check: str, model: str, error: Exception) -> Verdict:
    """Return the verdict on a check that raised `error`."""
    measured = {
        "error": f"{type(error).__name__}: {error}",
        TRACEBACK: "".join(traceback.format_exception(error)),
    }
    return Verdict(check, model, measured, "it runs", is_met=False)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a table in Markdown."""
    rows = []
    for each in verdicts:
        shown = {name: value for name, value in each.measured.items() if name not in _HIDDEN}
        measured = ", ".join(f"{name} {value}" for name, value in shown.items())
        rows.append([each.check, each.model, measured, each.aim, "yes" if each.is_met else "NO"])
    return table(["check", "model", "measured", "aim", "met"], rows)
