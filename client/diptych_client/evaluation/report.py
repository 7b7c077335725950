"""The pages: a report with its gallery, and an index of several reports.

Each is one HTML file by Jinja2's templates: style, script, plots and images are in it, and its
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
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
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
)
from diptych_client.evaluation.statistics import Curve, Details, Difference, Interval
from diptych_client.evaluation.tables import (
    Table,
    heading,
    json_document,
    markdown,
    sentences,
    tables,
)
from diptych_client.geometry import BoxXyxy, Ring
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
        parts.append(span.format(part) if index % 2 else escape(part))
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

    def card(self, sample: Sample, ranked: RankedSample) -> dict[str, Any]:
        panels = []
        predictions = []
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            if prediction is not None:
                predictions.append(prediction)
                panels.append(self._answer_panel(model, sample, prediction))
        size = predictions[0].image
        return {
            "title": sample.title,
            "image": thumbnail(self.store.read(sample.image)),
            "width": size.width,
            "height": size.height,
            "error": round(ranked.error, 3),
            "disagreement": round(ranked.disagreement, 3),
            "difference": round(ranked.difference, 3),
            "kinds": sorted(ranked.kinds),
            "classes": sorted(ranked.classes),
            "panels": [*self._truth_panel(sample, predictions), *panels],
        }

    def _truth_panel(
        self, sample: Sample, predictions: Sequence[Prediction]
    ) -> Iterator[dict[str, Any]]:
        shapes = []
        text = ""
        match sample.truth:
            case TextsTruth(texts):
                text = "\n".join(dict.fromkeys(texts))
            case ObjectsTruth(objects):
                of_models = [self._kinds(objects, prediction)[0] for prediction in predictions]
                for index, true in enumerate(objects):
                    is_missed = any(kinds[index] == "missed" for kinds in of_models)
                    shapes.append(self._true_shape(true, true.label, is_missed))
            case PhrasesTruth(phrases):
                judged = [judge_phrases(sample.truth, prediction) for prediction in predictions]
                for index, phrase in enumerate(phrases):
                    is_missed = any(answers[index].item is None for answers in judged)
                    shapes.append(self._true_shape(phrase, phrase.phrase, is_missed))
            case None:
                return
        yield {"name": "truth", "shapes": shapes, "text": text}

    def _true_shape(
        self, true: TrueObject | TruePhrase, label: str, is_missed: bool
    ) -> dict[str, Any]:
        """Return a true object: as its box, too, where answers are no masks."""
        rings: list[Any] = [_corners(true.box_xyxy or (0.0, 0.0, 0.0, 0.0))]
        is_filled = False
        if self.log.task == "instance_segmentation" and isinstance(true.segmentation, list):
            rings = [np.reshape(ring, (-1, 2)) for ring in true.segmentation]
            is_filled = True
        kind = "missed" if is_missed else "truth"
        return {"label": label, "kind": kind, "rings": _rounded(rings), "is_filled": is_filled}

    def _answer_panel(self, model: str, sample: Sample, prediction: Prediction) -> dict[str, Any]:
        kinds: Sequence[str] = ["answer"] * len(prediction.items)
        if isinstance(sample.truth, ObjectsTruth):
            kinds = self._kinds(sample.truth.objects, prediction)[1]
        elif isinstance(sample.truth, PhrasesTruth):
            judged = judge_phrases(sample.truth, prediction)
            kind_of = {id(phrase.item): phrase.kind for phrase in judged}
            # the best answer to a phrase counts
            kinds = [kind_of.get(id(item), "answer") for item in prediction.items]
        shapes = []
        for item, kind in zip(prediction.items, kinds, strict=True):
            label = f"{label_of(item)} {item.score:.2f}"
            shapes.append({"label": label, "kind": kind, **_shape(item)})
        return {"name": model, "shapes": shapes, "text": prediction.text or ""}

    def _kinds(
        self, objects: Sequence[TrueObject], prediction: Prediction
    ) -> tuple[list[str], list[str]]:
        truths = [LabelledBox(true.label, true.box_xyxy, true.is_crowd) for true in objects]
        answers = [LabelledBox(self.names.label(item), box_of(item)) for item in prediction.items]
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
    ring = item.quad_xy if isinstance(item, TextRegion) else _corners(item.box_xyxy)
    return {"rings": _rounded([ring]), "is_filled": False}


def _corners(box: BoxXyxy) -> Ring:
    x1, y1, x2, y2 = box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _rounded(rings: Iterable[Any]) -> list[list[list[float]]]:
    return [np.round(np.array(ring, dtype=float), 1).tolist() for ring in rings]


def report_files(out: Path) -> tuple[Path, Path, Path]:
    return out / "report.html", out / "report.md", out / "report.json"


def write_report(
    outputs: Outputs, evaluation: Evaluation, gallery: Gallery, samples: Sequence[Sample]
) -> None:
    """Write report.html, report.md and report.json; a report of other options is kept."""
    page, text, values = report_files(outputs.folder)
    _keep_earlier(outputs, evaluation)
    measured = evaluation.measured
    pieces = (
        _environment()
        .get_template("report.html")
        .generate(
            title=heading(evaluation),
            sentences=sentences(evaluation),
            interval_axis=None if measured is None else IntervalAxis(measured.intervals),
            line_plots=line_plots(evaluation.details),
            tables=tables(evaluation),
            cards=_cards(evaluation, gallery, samples),
        )
    )
    with outputs.claim(page).open("w", encoding="utf-8") as file:
        file.writelines(pieces)  # cards one by one
    outputs.write(text, markdown(evaluation))
    titles = {}
    for ranked in evaluation.gallery:
        titles[ranked.sample_index] = samples[ranked.sample_index].title
    document = json.dumps(json_document(evaluation, titles), indent=2)
    outputs.write(values, document + "\n")


def _cards(evaluation: Evaluation, gallery: Gallery, samples: Sequence[Sample]) -> Iterator[Markup]:
    for ranked in evaluation.gallery:
        text = json.dumps(gallery.card(samples[ranked.sample_index], ranked), ensure_ascii=False)
        yield Markup(text.replace("<", "\\u003c"))  # cannot end the script


def _keep_earlier(outputs: Outputs, evaluation: Evaluation) -> None:
    """Rename a report whose settings differ: its date becomes a part of its name."""
    files = report_files(outputs.folder)
    path = files[-1]
    if evaluation.run is None or not path.is_file():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))["run"]
        date = re.sub(r"[^0-9T]", "", str(earlier["date"]))
        settings = json.loads(json.dumps(evaluation.run.settings))
        # the same models at another address answer the same
        is_same = earlier["settings"] | {"service": settings["service"]} == settings
    except (ValueError, LookupError, TypeError):  # an earlier version wrote it
        date = "earlier"
        is_same = False
    for file in () if is_same else files:
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
