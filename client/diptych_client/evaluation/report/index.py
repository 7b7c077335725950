"""One page over several reports: tasks and models, which can be told apart, how many images would.

Reads each report.json; the page links to the reports beside it and loads nothing else.
"""

import math
from collections.abc import Sequence
from html import escape
from os.path import relpath
from pathlib import Path
from typing import Any

from diptych_client.evaluation.foreign_files import read_json
from diptych_client.evaluation.report.page import beginning, head, html_table
from diptych_client.evaluation.report.tables import Table
from diptych_client.evaluation.statistics import Difference, Interval
from diptych_client.inputs.problems import MALFORMED
from diptych_client.long_runs import RunError, refusal

_TITLE = "Reports"
_HEADER = ("report", "task", "images", "date", "metric", "models", "conclusion", "images needed")


def write_index(
    reports: Sequence[Path], out: Path, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Write the page and return its rows; raise `RunError` for a file that is not a report.

    An earlier index is replaced, another file only with `overwrite`.
    """
    if out.exists() and not overwrite:
        text = out.read_text(encoding="utf-8", errors="replace")
        if not text.startswith(beginning(_TITLE)):
            raise refusal(out)
    rows = []
    for given in reports:
        path = given / "report.json" if given.is_dir() else given
        try:
            rows += rows_of(path, read_json(path))
        except FileNotFoundError as error:
            needed = "give a folder that `diptych evaluate` wrote"
            raise RunError(f"{path} does not exist; {needed}") from error
        except MALFORMED as error:
            raise RunError(f"{path} is not a report: {error!r:.200}") from error
    cells = tuple(tuple(map(str, row.values())) for row in rows)
    note = "Images needed: an estimate of how many such images would tell the models apart."
    page = f"{head(_TITLE)}<main>{html_table(Table('All reports', _HEADER, cells, note))}"
    links = ""
    for given in reports:
        folder = given if given.is_dir() else given.parent
        href = relpath(folder / "report.html", out.parent)
        links += f'<li><a href="{escape(href, quote=True)}">{escape(folder.name)}</a></li>'
    out.parent.mkdir(parents=True, exist_ok=True)
    page += f"<section><h2>Pages</h2><ul>{links}</ul></section></main></body></html>\n"
    out.write_text(page, encoding="utf-8")
    return rows


def rows_of(path: Path, document: Any) -> list[dict[str, Any]]:
    """Return a row for each two models, or for one model alone, by the main metric."""
    run = document.get("run") or {}
    common = {
        "report": path.parent.name,
        "task": f"{document['task']} on {document['dataset']}",
        "images": document["num_images"],
        "date": str(run.get("date", ""))[:10],
    }
    measured = document["measured"] or document["agreed"]
    if not measured:
        return []
    first_values = next(iter(measured["intervals"].values()))
    metric = next(iter(first_values), "")
    values = []
    for model, own in measured["intervals"].items():
        if metric in own:
            values.append(f"{model} {_interval(own[metric])}")
    models = "; ".join(values)
    rows: list[dict[str, str | int]] = []
    for each in measured["differences"]:
        if each["metric"] == metric:
            found = Difference(**{**each, "interval": _interval(each["interval"])})
            needed = "" if found.is_clear else found.num_images_needed or "–"
            rows.append({"conclusion": str(found), "images needed": needed})
    alone: dict[str, str | int] = {
        "conclusion": "; ".join(document["sentences"]),
        "images needed": "",
    }
    own_rows = rows or [alone]
    return [{**common, "metric": metric, "models": models, **each} for each in own_rows]


def _interval(value: Any) -> Interval:
    numbers = [math.nan if each is None else float(each) for each in value.values()]
    return Interval(*numbers)
