"""The report as one HTML file.

Its policy lets it load nothing: style, script and images are in it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TextIO

from diptych_client.evaluation.metrics.evaluator import Evaluation
from diptych_client.evaluation.questionnaire import Sample
from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.evaluation.report.plots import Line, interval_plot, line_plot
from diptych_client.evaluation.report.tables import (
    Table,
    heading,
    json_document,
    markdown,
    sentences,
    tables,
)

_FOLDED = "Speed, agreement, and the answers by class, size and kind of error"
_FOLDER = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def write_report(
    out: Path, evaluation: Evaluation, gallery: Gallery, samples: Sequence[Sample]
) -> None:
    """Write report.html, report.md and report.json."""
    with (out / "report.html").open("w", encoding="utf-8") as file:
        cards = (gallery.card(samples[each.sample_index], each) for each in evaluation.gallery)
        _write_page(evaluation, cards, file)
    (out / "report.md").write_text(markdown(evaluation), encoding="utf-8")
    titles = {each.sample_index: samples[each.sample_index].title for each in evaluation.gallery}
    document = json.dumps(json_document(evaluation, titles), indent=2)
    (out / "report.json").write_text(document + "\n", encoding="utf-8")


def _write_page(evaluation: Evaluation, cards: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Write the page; cards are written one by one."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
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
        data = json.dumps(card, ensure_ascii=False).replace("<", "\\u003c")  # cannot end the script
        file.write(f",{data}" if index else data)
    file.write(f"]</script><script>{script}</script></body></html>\n")


def _sections(evaluation: Evaluation) -> Iterator[str]:
    """Yield the plots and the main table; the others are folded, so that the images follow."""
    yield f'<section class="plots">{"".join(_plots(evaluation))}</section>'
    others = ""
    for table in tables(evaluation):
        if table.title == "Metrics":
            yield _table(table)
        else:
            others += _table(table)
    if others:
        yield f"<details><summary>{_FOLDED}</summary><div>{others}</div></details>"


def _plots(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.measured is not None:
        yield interval_plot("Metrics with 95 % intervals", evaluation.measured.intervals)
    by_recall = []
    by_score = []
    for series, (model, each) in enumerate(evaluation.details.items()):
        if each.precision_by_recall is not None:
            by_recall.append(Line(model, each.precision_by_recall, series))
        if each.precision_by_score is not None:
            by_score.append(Line(f"precision {model}", each.precision_by_score, series))
        if each.recall_by_score is not None:
            by_score.append(Line(f"recall {model}", each.recall_by_score, series, dash=1))
    if by_recall:
        yield line_plot("Precision over recall, IoU 0.5", "recall", "precision", by_recall)
    if by_score:
        title = "Answers with at least a score, IoU 0.5"
        yield line_plot(title, "score", "precision, recall", by_score)


def _table(table: Table) -> str:
    largest = 0  # maximum of a matrix of counts, whose cells are coloured
    if table.title.startswith("Confusion"):
        largest = max((max(map(int, row[1:])) for row in table.rows), default=0)
    body = ""
    for name, *cells in table.rows:
        body += f'<tr><th scope="row">{escape(name)}</th>'
        for cell in cells:
            share = round(60 * int(cell) / largest) if largest else 0
            heat = f' style="--heat: {share}%" class="heat"' if largest else ""
            body += f"<td{heat}>{escape(cell)}</td>"
        body += "</tr>"
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide"'
        f' tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</section>"
    )
