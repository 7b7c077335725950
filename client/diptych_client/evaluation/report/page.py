"""The report as one HTML file.

Its policy lets it load nothing: style, script and images are in it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any, TextIO

from diptych_client.evaluation.metrics.evaluator import Evaluation
from diptych_client.evaluation.report.plots import Line, interval_plot, line_plot
from diptych_client.evaluation.report.tables import Table, heading, sentences, tables

_FOLDED = "Speed, agreement, and the answers by class, size and kind of error"
_FOLDER = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def html_page(evaluation: Evaluation, cards: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Write the page; cards are written one by one."""
    style, script = (
        (_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    title = escape(heading(evaluation))
    claims = "".join(f'<p class="sentence">{escape(each)}</p>' for each in sentences(evaluation))
    file.write(
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{style}</style></head><body>'
        f"<header><p>Diptych</p><h1>{title}</h1>{claims}</header>"
        f"<main>{''.join(_sections(evaluation))}"
        '<section id="gallery"><h2>Images</h2><div class="filters"></div><p class="count"'
        ' role="status"></p>'
        '<div class="cards"></div></section></main><script type="application/json" id="cards">['
    )
    for index, card in enumerate(cards):
        file.write(("," if index else "") + _script_json(card))
    file.write(f"]</script><script>{script}</script></body></html>\n")


def _script_json(value: Any) -> str:
    """Return JSON that cannot end the script element."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def _sections(evaluation: Evaluation) -> Iterator[str]:
    """Yield the plots and the main table; the others are folded, so that the images follow."""
    found = tables(evaluation)
    yield f'<section class="plots">{"".join(_plots(evaluation))}</section>'
    yield from (_table(table) for table in found if table.title == "Metrics")
    if others := [_table(table) for table in found if table.title != "Metrics"]:
        yield f"<details><summary>{_FOLDED}</summary><div>{''.join(others)}</div></details>"


def _plots(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.measured is not None:
        yield interval_plot("Metrics with 95 % intervals", evaluation.measured.intervals)
    details = list(evaluation.details.items())
    by_recall = [
        Line(model, each.precision_by_recall, series)
        for series, (model, each) in enumerate(details)
        if each.precision_by_recall is not None
    ]
    if by_recall:
        yield line_plot("Precision over recall, IoU 0.5", "recall", "precision", by_recall)
    by_score = [
        Line(f"{name} {model}", curve, series, dash)
        for series, (model, each) in enumerate(details)
        for dash, (name, curve) in enumerate(
            (("precision", each.precision_by_score), ("recall", each.recall_by_score))
        )
        if curve is not None
    ]
    if by_score:
        yield line_plot(
            "Answers with at least a score, IoU 0.5", "score", "precision, recall", by_score
        )


def _table(table: Table) -> str:
    is_matrix = table.title.startswith("Confusion")
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    largest = (
        max((int(cell) for row in table.rows for cell in row[1:]), default=0) if is_matrix else 0
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        f"{''.join(_cell(cell, largest) for cell in row[1:])}</tr>"
        for row in table.rows
    )
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide"'
        f' tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</section>"
    )


def _cell(text: str, largest: int) -> str:
    if not largest:
        return f"<td>{escape(text)}</td>"
    return (
        f'<td style="--heat: {round(60 * int(text) / largest)}%" class="heat">{escape(text)}</td>'
    )
