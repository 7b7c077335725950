"""The results of an evaluation as tables, Markdown, JSON and pages: a report, an index of several.

Each page is one HTML file by Jinja2's templates: style, script, plots and images are in it, and its
policy lets it load nothing. Shapes of the gallery are drawn by templates/page.js, in pixels of the
original image.

Jinja2 escapes all texts: names of datasets, models and labels are foreign.
"""

import io
import json
import math
import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from html import escape
from itertools import chain
from os.path import relpath
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageOps

from diptych_client.evaluation.dataset import TrueObject, TruePhrase, read_json
from diptych_client.evaluation.evaluator import Evaluation, RankedSample, judge_phrases
from diptych_client.evaluation.questions import (
    AnswerLog,
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Prediction,
    Sample,
    TextsTruth,
    Truth,
)
from diptych_client.evaluation.statistics import Curve, Details, Difference, Interval
from diptych_client.geometry import corners
from diptych_client.inputs import MALFORMED, ImageStore
from diptych_client.long_runs import Outputs, RunError, refusal
from diptych_client.matching import LabelledBox, match
from diptych_client.results import Instance, Item, TextRegion, box_of, label_of

NUM_COLORS = 6
_MAX_SIDE_PX = 400
_JPEG_QUALITY = 75
_INTERVAL = re.compile(r"(\[[^\s,\]]+, [^\s,\]]+\])")
_INDEX_HEADER = (
    *("report", "task", "images", "date", "metric", "models", "conclusion"),
    "images needed",
)
_INDEX_TITLE = "Reports"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MARKDOWN = re.compile(r"[\\`|]|\](?=[(\[:])")
_SPEEDS = {
    "latency_p50_ms": "latency p50, ms",
    "latency_p95_ms": "latency p95, ms",
    "images_per_s": "images/s",
    "tokens_per_s": "tokens/s",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    max_count: int = 0  # the largest of a matrix, whose cells are coloured


def sentences(evaluation: Evaluation) -> list[str]:
    """Return what the main metric says of each two models, and how far the models agree."""
    texts = []
    if evaluation.measured is not None:
        differences = evaluation.measured.differences
        for difference in differences:
            if difference.metric == differences[0].metric:
                texts.append(f"{difference}.")
    if evaluation.agreed is not None:
        for title, metrics in evaluation.agreed.intervals.items():
            texts.append(f"{title}: agreement {metrics['agreement']} %.")
    return texts


def tables(evaluation: Evaluation) -> list[Table]:
    all_tables = [
        *_metrics(evaluation),
        _speed(evaluation),
        *_by_class_and_size(evaluation.details),
        *_kinds(evaluation.details),
        *_agreement(evaluation),
    ]
    if (run := evaluation.run) is not None:
        all_tables.append(Table("Run", ("property", "value"), tuple(run.rows())))
        failed = tuple(tuple(failure.values()) for failure in run.failed)
        note = f"{run.num_failed} requests failed; failures.jsonl has all of them."
        all_tables.append(Table("Failed requests", ("image", "model", "error"), failed, note))
    return [table for table in all_tables if table.rows]


def _metrics(evaluation: Evaluation) -> Iterator[Table]:
    measured = evaluation.measured
    if measured is None:
        return
    rows: dict[str, list[str]] = {name: [] for name in next(iter(measured.intervals.values()))}
    for model in evaluation.models:
        for name, interval in measured.intervals[model].items():
            rows[name].append(str(interval))
    columns: dict[str, None] = {}
    errors: dict[str, None] = {}  # metrics of which lower is better
    for difference in measured.differences:
        columns[f"{difference.second} − {difference.first}"] = None
        if difference.is_error:
            errors[difference.metric] = None
        unclear = "" if difference.is_clear else " (not told apart)"
        rows[difference.metric].append(f"{difference.as_subtracted()}{unclear}")
    note = "In hundredths, with 95 % intervals."
    if columns:
        note += " Differences are paired by image; higher is better"
        note += f", except for {', '.join(errors)}." if errors else "."
    header = ("metric", *evaluation.models, *columns)
    yield Table("Metrics", header, tuple((name, *cells) for name, cells in rows.items()), note)


def _speed(evaluation: Evaluation) -> Table:
    speeds = evaluation.speed.values()
    rows = []
    for name, title in _SPEEDS.items() if speeds else ():
        rows.append((title, *(_number(speed[name]) for speed in speeds)))
    note = "Measured in this client, with the run's concurrency."
    return Table("Speed", ("measure", *evaluation.speed), tuple(rows), note)


def _by_class_and_size(details: Mapping[str, Details]) -> Iterator[Table]:
    details = {model: entry for model, entry in details.items() if entry.by_class}
    first = next(iter(details.values()), Details())
    header = ["class", "objects"]
    for measure in ("AP", "AP50"):
        header += [f"{measure} {model}" for model in details]
    rows = []
    for label, row in first.by_class.items():
        cells = [label, f"{row['objects']:.0f}"]
        for measure in ("AP", "AP50"):
            cells += [_number(entry.by_class[label][measure]) for entry in details.values()]
        rows.append(tuple(cells))
    yield Table("AP by class", tuple(header), tuple(rows))
    sizes = []
    for size in first.by_size:
        sizes.append((size, *(_number(entry.by_size[size]) for entry in details.values())))
    note = "COCO's sizes: small below 32 × 32 pixels, large above 96 × 96."
    yield Table("AP by size", ("size", *details), tuple(sizes), note)


def _kinds(details: Mapping[str, Details]) -> Iterator[Table]:
    counts = []
    for kind in dict.fromkeys(chain.from_iterable(entry.kinds for entry in details.values())):
        counts.append((kind, *(str(entry.kinds[kind]) for entry in details.values())))
    note = (
        "Right: IoU ≥ 0.75 with an object of its class. Loosely placed: 0.5 to 0.75. Badly placed:"
        " 0.1 to 0.5. Wrong class: IoU ≥ 0.5 with an object of another class."
    )
    yield Table("Answers by kind", ("kind", *details), tuple(counts), note)
    for model, entry in details.items():
        if entry.confusion is None:
            continue
        rows = []
        for label, row in zip(entry.confusion.labels, entry.confusion.counts, strict=True):
            rows.append((label, *map(str, row)))
        header = ("true \\ answered", *entry.confusion.labels)
        title = f"Confusion matrix of {model}"
        largest = max(map(max, entry.confusion.counts))
        yield Table(title, header, tuple(rows), "At IoU 0.5, all scores.", largest)


def _agreement(evaluation: Evaluation) -> Iterator[Table]:
    if evaluation.agreed is None:
        return
    rows = []
    for title, metrics in evaluation.agreed.intervals.items():
        rows.append((title, str(metrics["agreement"])))
    boxes = "2 · both / (first + second), same label, mean over IoU ≥ 0.5, 0.55, …, 0.95"
    note = f"Of boxes: {boxes}. Of texts: 1 − edit distance."
    yield Table("Agreement", ("models", "agreement, %"), tuple(rows), note)
    for title, classes in evaluation.agreement_by_class.items():
        first, _, second = title.partition(" and ")
        sides = (f"only {first}", f"only {second}")
        header = ("class", "found by both", *sides, "other label or place")
        counts = []
        for label, agreement in classes.items():
            counts.append((label, *map(str, agreement.values())))
        yield Table(f"Agreement by class: {title}", header, tuple(counts))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def heading(evaluation: Evaluation) -> str:
    count = f"{evaluation.num_images} images"
    if evaluation.num_samples != evaluation.num_images:
        count += f", {evaluation.num_samples} questions"
    if evaluation.num_labelled == 0 < evaluation.num_samples:
        count += " without labels"
    elif evaluation.num_labelled < evaluation.num_samples:
        count += f", {evaluation.num_labelled} of them labelled"
    if evaluation.num_unanswered:
        count += f"; {evaluation.num_unanswered} not answered by every model"
    return f"{evaluation.task} on {evaluation.dataset}: {count}"


def markdown(evaluation: Evaluation) -> str:
    parts = [f"# {_inline(heading(evaluation))}", *map(_inline, sentences(evaluation))]
    for table in tables(evaluation):
        lines = [_row(table.header), "|---" * len(table.header) + "|", *map(_row, table.rows)]
        parts += [f"## {_inline(table.title)}", "\n".join(lines), table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_inline, cells))} |"


def _inline(text: str) -> str:
    """Return names as text of one line: not HTML, a link, a picture, a cell or a heading."""
    line = _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))
    return _MARKDOWN.sub(r"\\\g<0>", escape(line, quote=False))


def json_document(evaluation: Evaluation, titles: Sequence[str] = ()) -> dict[str, Any]:
    """Return the report as JSON's values, NaN as null; `titles` are those of samples."""
    worst = []
    for ranked in evaluation.gallery:
        title = titles[ranked.sample_index] if titles else ""
        row = {"sample": title, "error": ranked.error}
        worst.append(row | {"disagreement": ranked.disagreement, "kinds": sorted(ranked.kinds)})
    document: dict[str, Any] = _finite({**asdict(evaluation), "gallery": worst})
    return document | {"sentences": sentences(evaluation)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken_intervals"] = _unbroken_intervals
    return environment


def _unbroken_intervals(text: str) -> Markup:
    """Escape a text; the line of an interval in it is not broken."""
    parts = []
    for index, part in enumerate(_INTERVAL.split(text)):
        span = Markup('<span class="interval">{}</span>')
        parts.append(span.format(part) if index % 2 else markupsafe.escape(part))
    return Markup().join(parts)


@dataclass(frozen=True, slots=True)
class Line:
    """A named curve; `series` selects its colour."""

    name: str
    curve: Curve
    series: int
    is_dashed: bool = False

    @property
    def points(self) -> list[tuple[float, float]]:
        points = []
        for x, y in zip(self.curve.xs, self.curve.ys, strict=True):
            points.append((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)))
        return points


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Curves with both axes from 0 to 1."""

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]


@dataclass(frozen=True, slots=True)
class IntervalAxis:
    """Metrics of all models on a horizontal axis that ends at tens."""

    intervals: Mapping[str, Mapping[str, Interval]]  # keyed by model, then metric

    @property
    def metrics(self) -> list[str]:
        return list(next(iter(self.intervals.values()), ()))

    @property
    def minimum(self) -> float:
        return 10 * math.floor(min(self._ends(), default=0.0) / 10)

    @property
    def maximum(self) -> float:
        return max(10 * math.ceil(max(self._ends(), default=0.0) / 10), self.minimum + 10)

    def x(self, value: float) -> float:
        share = (value - self.minimum) / (self.maximum - self.minimum)
        return round(120 + 228 * share, 1)

    def _ends(self) -> Iterator[float]:
        for metrics in self.intervals.values():
            for interval in metrics.values():
                yield from filter(math.isfinite, (interval.low, interval.value, interval.high))


def line_plots(all_details: Mapping[str, Details]) -> list[LinePlot]:
    by_recall = []
    by_score = []
    by_class = []
    for series, (model, details) in enumerate(all_details.items()):
        if details.precision_by_recall is not None:
            by_recall.append(Line(model, details.precision_by_recall, series))
        if details.precision_by_score is not None:
            by_score.append(Line(f"precision {model}", details.precision_by_score, series))
        if details.recall_by_score is not None:
            by_score.append(Line(f"recall {model}", details.recall_by_score, series, True))
        largest = sorted(details.by_class, key=lambda label: -details.by_class[label]["objects"])
        curves = []
        for color, label in enumerate(largest[:NUM_COLORS]):
            curves.append(Line(label, details.precision_by_recall_of[label], color))
        if len(details.by_class) > 1:
            title = f"By class, IoU 0.5: {model}"
            by_class.append(LinePlot(title, "recall", "precision", curves))
    all_models = LinePlot("Precision over recall, IoU 0.5", "recall", "precision", by_recall)
    title = "Answers with at least a score, IoU 0.5"
    scores = LinePlot(title, "score", "precision, recall", by_score)
    return [plot for plot in (all_models, *by_class, scores) if plot.lines]


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images and answers of the cards."""

    store: ImageStore
    log: AnswerLog
    names: ClassNames
    models: Sequence[str]
    samples: Sequence[Sample]

    def card(self, ranked: RankedSample) -> dict[str, Any]:
        sample = self.samples[ranked.sample_index]
        panels = []
        missed = set[int]()
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            assert prediction is not None  # a ranked sample has all answers
            size = prediction.image
            true_kinds, kinds = self._kinds(sample.truth, prediction)
            missed |= {index for index, kind in enumerate(true_kinds) if kind == "missed"}
            shapes = []
            for item, kind in zip(prediction.items, kinds, strict=True):
                label = f"{label_of(item)} {item.score:.2f}"
                shapes.append({"label": label, "kind": kind, **_shape(item)})
            panels.append({"name": model, "shapes": shapes, "text": prediction.text or ""})
        if sample.truth is not None:
            panels.insert(0, self._truth_panel(sample.truth, missed))
        return {
            "title": sample.title,
            "image": thumbnail(self.store.read(sample.image)),
            **asdict(size),
            "error": round(ranked.error, 3),
            "disagreement": round(ranked.disagreement, 3),
            "difference": round(ranked.difference, 3),
            "kinds": sorted(ranked.kinds),
            "classes": sorted(ranked.classes),
            "panels": panels,
        }

    def _truth_panel(self, truth: Truth, missed: set[int]) -> dict[str, Any]:
        if isinstance(truth, TextsTruth):
            return {"name": "truth", "shapes": [], "text": "\n".join(dict.fromkeys(truth.texts))}
        shapes = []
        objects: Sequence[TrueObject | TruePhrase] = truth.objects
        for index, true in enumerate(objects):
            rings: Iterable[Any] = [corners(true.box_xyxy or (0.0, 0.0, 0.0, 0.0))]
            has_masks = self.log.task == "instance_segmentation"
            is_filled = has_masks and isinstance(true.segmentation, list)
            if is_filled:
                rings = [np.reshape(ring, (-1, 2)) for ring in true.segmentation]
            kind = "missed" if index in missed else "truth"
            shape = {"rings": _rounded(rings), "is_filled": is_filled}
            shapes.append({"label": true.label, "kind": kind, **shape})
        return {"name": "truth", "shapes": shapes, "text": ""}

    def _kinds(
        self, truth: Truth | None, prediction: Prediction
    ) -> tuple[Sequence[str], Sequence[str]]:
        """Return the kind of each true object, and of each answered one."""
        items = prediction.items
        if isinstance(truth, PhrasesTruth):
            judged = judge_phrases(truth, prediction)
            kind_of = {id(phrase.item): phrase.kind for phrase in judged}  # the best answer counts
            kinds = [kind_of.get(id(item), "answer") for item in items]
            return [phrase.kind for phrase in judged], kinds
        if not isinstance(truth, ObjectsTruth):
            return (), ["answer"] * len(items)
        truths = [LabelledBox(true.label, true.box_xyxy, true.is_crowd) for true in truth.objects]
        answers = [LabelledBox(self.names.label(item), box_of(item)) for item in items]
        true_kinds: list[str] = ["ignored"] * len(truths)
        answer_kinds: list[str] = ["ignored"] * len(answers)
        for pair in match(truths, answers):
            if pair.truth is not None:
                true_kinds[pair.truth] = pair.kind
            if pair.answer is not None:
                answer_kinds[pair.answer] = pair.kind
        return true_kinds, answer_kinds


def thumbnail(data: bytes) -> str:
    """Return a small JPEG of the upright image as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _shape(item: Item) -> dict[str, Any]:
    if isinstance(item, Instance) and item.polygons_xy:
        return {"rings": _rounded(item.polygons_xy), "is_filled": True}
    ring = item.quad_xy if isinstance(item, TextRegion) else corners(item.box_xyxy)
    return {"rings": _rounded([ring]), "is_filled": False}


def _rounded(rings: Iterable[Any]) -> list[list[list[float]]]:
    return [np.round(np.array(ring, dtype=float), 1).tolist() for ring in rings]


def report_files(out: Path) -> tuple[Path, Path, Path]:
    return out / "report.html", out / "report.md", out / "report.json"


def write_report(outputs: Outputs, evaluation: Evaluation, gallery: Gallery) -> None:
    """Write report.html, report.md and report.json; a report of other options is kept."""
    page, text, values = report_files(outputs.folder)
    _keep_earlier(outputs, evaluation)
    measured = evaluation.measured
    template = _environment().get_template("report.html")
    pieces = template.generate(
        title=heading(evaluation),
        sentences=sentences(evaluation),
        interval_axis=None if measured is None else IntervalAxis(measured.intervals),
        line_plots=line_plots(evaluation.details),
        tables=tables(evaluation),
        cards=map(gallery.card, evaluation.gallery),
    )
    with outputs.claim(page).open("w", encoding="utf-8") as file:
        file.writelines(pieces)  # cards one by one
    outputs.write(text, markdown(evaluation))
    document = json_document(evaluation, [sample.title for sample in gallery.samples])
    outputs.write(values, json.dumps(document, indent=2) + "\n")


def _keep_earlier(outputs: Outputs, evaluation: Evaluation) -> None:
    """Rename a report whose settings differ: its date becomes a part of its name."""
    files = report_files(outputs.folder)
    if evaluation.run is None or not files[-1].is_file():
        return
    date = "earlier"  # an earlier version wrote it
    with suppress(ValueError, LookupError, TypeError):
        earlier = json.loads(files[-1].read_text(encoding="utf-8"))["run"]
        settings = json.loads(json.dumps(evaluation.run.settings))
        # the same models at another address answer the same
        if earlier["settings"] | {"service": settings["service"]} == settings:
            return
        date = re.sub(r"[^0-9T]", "", str(earlier["date"]))
    for file in files:
        if file.exists():
            file.rename(outputs.claim(file.with_name(f"report-{date}{file.suffix}")))


def write_index(
    reports: Sequence[Path], out: Path, overwrite: bool = False
) -> list[dict[str, Any]]:
    """Write a page over several reports and return its rows: what can be told apart.

    An earlier index is replaced, another file only with `overwrite`. Raise `RunError` for a file
    that is not a report.
    """
    if out.exists() and not overwrite:
        text = out.read_text(encoding="utf-8", errors="replace")
        if f"<title>{_INDEX_TITLE}</title>" not in text[:200]:
            raise refusal(out)
    rows = []
    links = []
    for report in reports:
        path = report / "report.json" if report.is_dir() else report
        try:
            rows += _index_rows(path, read_json(path))
        except FileNotFoundError as error:
            needed = "give a folder that `diptych evaluate` wrote"
            raise RunError(f"{path} does not exist; {needed}") from error
        except MALFORMED as error:
            raise RunError(f"{path} is not a report: {error!r:.200}") from error
        links.append((relpath(path.with_name("report.html"), out.parent), path.parent.name))
    cells = tuple(tuple(map(str, row.values())) for row in rows)
    note = "Images needed: an estimate of how many such images would tell the models apart."
    table = Table("All reports", _INDEX_HEADER, cells, note)
    template = _environment().get_template("index.html")
    page = template.render(title=_INDEX_TITLE, sentences=[], table=table, links=links)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return rows


def _index_rows(path: Path, document: Any) -> list[dict[str, Any]]:
    measured = document["measured"] or document["agreed"]
    if not measured:
        return []
    metric = next(iter(next(iter(measured["intervals"].values()))), "")
    values = []
    for model, metrics in measured["intervals"].items():
        if metric in metrics:
            values.append(f"{model} {_interval(metrics[metric])}")
    run = document.get("run") or {}
    common = {
        "report": path.parent.name,
        "task": f"{document['task']} on {document['dataset']}",
        "images": document["num_images"],
        "date": str(run.get("date", ""))[:10],
        "metric": metric,
        "models": "; ".join(values),
    }
    rows: list[dict[str, Any]] = []
    for fields in measured["differences"]:
        if fields["metric"] == metric:
            difference = Difference(**{**fields, "interval": _interval(fields["interval"])})
            needed = "" if difference.is_clear else difference.num_images_needed or "–"
            rows.append({**common, "conclusion": str(difference), "images needed": needed})
    if rows:
        return rows
    return [{**common, "conclusion": "; ".join(document["sentences"]), "images needed": ""}]


def _interval(fields: Mapping[str, Any]) -> Interval:
    numbers = [math.nan if number is None else float(number) for number in fields.values()]
    return Interval(*numbers)
