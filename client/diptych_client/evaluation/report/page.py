"""The report as one HTML file.

Its policy lets it load nothing: style, script and images are in it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, TextIO

from diptych_client.evaluation.metrics.evaluator import Evaluation
from diptych_client.evaluation.questionnaire import Sample
from diptych_client.evaluation.report.gallery import Gallery
from diptych_client.evaluation.report.plots import NUM_COLORS, Line, interval_plot, line_plot
from diptych_client.evaluation.report.tables import (
    Table,
    heading,
    json_document,
    markdown,
    sentences,
    tables,
)
from diptych_client.long_runs import Outputs

_FOLDER = Path(__file__).parent
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_INTERVAL = re.compile(r"\[[^\s,\]]+, [^\s,\]]+\]")  # its line is not broken


def write_report(
    outputs: Outputs, evaluation: Evaluation, gallery: Gallery, samples: Sequence[Sample]
) -> None:
    """Write report.html, report.md and report.json; a report of other options is kept."""
    page, text, values = report_files(outputs.folder)
    _keep_earlier(outputs, evaluation)
    with outputs.claim(page).open("w", encoding="utf-8") as file:
        cards = (gallery.card(samples[each.sample_index], each) for each in evaluation.gallery)
        _write_page(evaluation, cards, file)
    outputs.write(text, markdown(evaluation))
    titles = {each.sample_index: samples[each.sample_index].title for each in evaluation.gallery}
    document = json.dumps(json_document(evaluation, titles), indent=2)
    outputs.write(values, document + "\n")


def report_files(out: Path) -> tuple[Path, Path, Path]:
    """Return the files of a report: HTML, Markdown, JSON."""
    return out / "report.html", out / "report.md", out / "report.json"


def _write_page(evaluation: Evaluation, cards: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Write the page; cards are written one by one."""
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    title = heading(evaluation)
    file.write(
        f"{head(title, *sentences(evaluation))}<main>{''.join(_sections(evaluation))}"
        '<section id="gallery"><h2>Images</h2><div class="filters"></div><p class="count"'
        ' role="status"></p>'
        '<div class="cards"></div></section></main><script type="application/json" id="cards">['
    )
    for index, card in enumerate(cards):
        data = json.dumps(card, ensure_ascii=False).replace("<", "\\u003c")  # cannot end the script
        file.write(f",{data}" if index else data)
    file.write(f"]</script><script>{script}</script></body></html>\n")


def beginning(title: str) -> str:
    """Return what a page begins with, which shows that it is of this program."""
    meta = '<meta charset="utf-8">'
    return f'<!doctype html>\n<html lang="en"><head>{meta}<title>{escape(title)}</title>'


def head(title: str, *claims: str) -> str:
    """Return the first part of a page, up to its header."""
    style = (_FOLDER / "page.css").read_text(encoding="utf-8")
    shown = "".join(f'<p class="sentence">{escape(each)}</p>' for each in claims)
    return (
        f'{beginning(title)}<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{style}</style></head><body>'
        f"<header><p>Diptych</p><h1>{escape(title)}</h1>{shown}</header>"
    )


def _keep_earlier(outputs: Outputs, evaluation: Evaluation) -> None:
    """Rename a report whose settings differ: its date becomes a part of its name."""
    files = report_files(outputs.folder)
    path = files[-1]
    if evaluation.run is None or not path.is_file():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["run"]
        date = re.sub(r"[^0-9T]", "", str(earlier["date"]))
        now = json.loads(json.dumps(evaluation.run.settings))
        # the same models at another address answer the same
        is_same = earlier["settings"] | {"service": now["service"]} == now
    except (ValueError, LookupError, TypeError):  # an earlier version wrote it
        date = "earlier"
        is_same = False
    for file in () if is_same else files:
        if file.exists():
            file.rename(outputs.claim(file.with_name(f"report-{date}{file.suffix}")))


def _sections(evaluation: Evaluation) -> Iterator[str]:
    """Yield the plots and the tables."""
    yield f'<section class="plots">{"".join(_plots(evaluation))}</section>'
    yield from map(html_table, tables(evaluation))


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
    for model, each in evaluation.details.items():
        largest = sorted(each.by_class, key=lambda label: -each.by_class[label]["objects"])
        curves = []
        for series, label in enumerate(largest[:NUM_COLORS]):
            curves.append(Line(label, each.precision_by_recall_of[label], series))
        if len(each.by_class) > 1:
            title = f"By class, IoU 0.5: {model}"
            yield line_plot(title, "recall", "precision", curves)
    if by_score:
        title = "Answers with at least a score, IoU 0.5"
        yield line_plot(title, "score", "precision, recall", by_score)


def html_table(table: Table) -> str:
    largest = 0  # maximum of a matrix of counts, whose cells are coloured
    if table.title.startswith("Confusion"):
        largest = max((max(map(int, row[1:])) for row in table.rows), default=0)
    body = ""
    for name, *cells in table.rows:
        body += f'<tr><th scope="row">{escape(name)}</th>'
        for cell in cells:
            share = round(60 * int(cell) / largest) if largest else 0
            heat = f' style="--heat: {share}%" class="heat"' if largest else ""
            text = _INTERVAL.sub(r'<span class="interval">\g<0></span>', escape(cell))
            body += f"<td{heat}>{text}</td>"
        body += "</tr>"
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide"'
        f' tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{note}</section>"
    )
