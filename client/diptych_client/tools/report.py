"""The results of an evaluation as tables, JSON and a page.

The page is one HTML file by Jinja2's templates: style, script, plots and images are in it, and its
policy lets it load nothing. Shapes of the gallery are drawn by templates/page.js, in pixels of the
original image. Jinja2 escapes all texts: names of datasets, models and labels are foreign.
"""

import io
import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageOps

from diptych_client.conversion import rgb_of
from diptych_client.datasets.dataset import TrueObject, TruePhrase
from diptych_client.datasets.inputs import ImageStore
from diptych_client.datasets.long_runs import Outputs
from diptych_client.geometry import corners
from diptych_client.results import Detection, Instance, Item, TextRegion, score_text
from diptych_client.tools.evaluator import Evaluation, Evaluator, RankedSample, measure_for
from diptych_client.tools.questions import Sample, TextsTruth, Truth
from diptych_client.tools.statistics import Details, Estimates, Interval, Outcome

_MAX_SIDE_PX = 400
_JPEG_QUALITY = 75


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def sentences(evaluation: Evaluation) -> list[str]:
    """Return the main metric of each model, what it says of each two, and how far they agree."""
    texts = []
    differences = () if evaluation.measured is None else evaluation.measured.differences
    if evaluation.measured is not None and differences:
        metric = differences[0].metric
        for model, intervals in evaluation.measured.intervals.items():
            texts.append(f"{model}: {intervals[metric]} {metric}.")
        if evaluation.doubts:
            texts.append(f"No verdict: {'; '.join(evaluation.doubts)}.")
            differences = ()
        for difference in differences:
            if difference.metric == metric:
                texts.append(f"{difference}.")
    if evaluation.agreed is not None:
        for title, metrics in evaluation.agreed.intervals.items():
            texts.append(f"{title}: agreement {metrics['agreement']} %.")
    return texts


def tables(evaluation: Evaluation) -> list[Table]:
    details = evaluation.details
    run = Table("Run", ("property", "value"), tuple(evaluation.run.items()))
    all_tables = [_metrics(evaluation), _by_class(details), _kinds(details), run]
    return list(filter(attrgetter("rows"), all_tables))


def _metrics(evaluation: Evaluation) -> Table:
    rows: dict[str, list[str]] = {}
    columns: dict[str, None] = {}
    errors: dict[str, None] = {}  # metrics of which lower is better
    measured = evaluation.measured or Estimates({}, ())
    for intervals in measured.intervals.values():
        for name, interval in intervals.items():
            rows.setdefault(name, []).append(str(interval))
    for difference in measured.differences:
        columns[f"{difference.second} − {difference.first}"] = None
        if difference.is_error:
            errors[difference.metric] = None
        unclear = "" if difference.is_clear else " (not told apart)"
        rows[difference.metric].append(f"{difference.as_subtracted()}{unclear}")
    errors_of_scores = list(map(attrgetter("calibration_error"), evaluation.details.values()))
    if any(map(math.isfinite, errors_of_scores)):
        rows["calibration error"] = list(map(_number, errors_of_scores))
    note = "In hundredths, with 95 % intervals."
    if columns:
        note += " Differences are paired by image; higher is better"
        note += f", except for {', '.join(errors)}." if errors else "."
    header = ("metric", *evaluation.models, *columns)
    return Table("Metrics", header, tuple((name, *cells) for name, cells in rows.items()), note)


def _by_class(all_details: Mapping[str, Details]) -> Table:
    header = ["class", "objects"]
    rows: dict[str, list[str]] = {}
    for measure in ("AP", "AP50"):
        for model, details in all_details.items():
            header.append(f"{measure} {model}")
            for label, row in details.by_class.items():
                cells = rows.setdefault(label, [label, f"{row['objects']:.0f}"])
                cells.append(_number(row[measure]))
    return Table("AP by class", tuple(header), tuple(map(tuple, rows.values())))


def _kinds(details: Mapping[str, Details]) -> Table:
    counts = []
    for kind in dict.fromkeys(chain.from_iterable(entry.kinds for entry in details.values())):
        counts.append((kind, *(str(entry.kinds.get(kind, 0)) for entry in details.values())))
    note = (
        "Right: IoU ≥ 0.75 with an object of its class. Loosely placed: 0.5 to 0.75. Badly placed:"
        " 0.1 to 0.5. Wrong class: IoU ≥ 0.5 with an object of another class."
    )
    return Table("Answers by kind", ("kind", *details), tuple(counts), note)


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1f}"


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


def json_document(evaluation: Evaluation, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the report as JSON's values, NaN as null."""
    worst = []
    for ranked in evaluation.gallery:
        row = {"sample": samples[ranked.sample_index].title, "error": ranked.error}
        worst.append(row | {"disagreement": ranked.disagreement, "kinds": sorted(ranked.kinds)})
    text = json.dumps({**asdict(evaluation), "gallery": worst})
    document: dict[str, Any] = json.loads(text, parse_constant=lambda _: None)
    return document | {"sentences": sentences(evaluation)}


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images and answers of the cards."""

    store: ImageStore
    evaluator: Evaluator
    samples: Sequence[Sample]

    def card(self, ranked: RankedSample) -> dict[str, Any]:
        sample = self.samples[ranked.sample_index]
        panels = []
        missed = set[int]()
        task = self.evaluator.log.task
        for model in self.evaluator.models:
            prediction = self.evaluator.log.prediction(sample, model)
            assert prediction is not None  # a ranked sample has all answers
            size = prediction.image
            outcome = Outcome(0)
            if sample.truth is not None:
                measure = measure_for(sample.truth, task, self.evaluator.names)
                outcome = measure.add(sample.truth, prediction)
            missed |= {i for i, kind in enumerate(outcome.true_kinds) if kind == "missed"}
            kinds = outcome.answer_kinds or ["answer"] * len(prediction.items)
            shapes = []
            for item, kind in zip(prediction.items, kinds, strict=True):
                label = f"{item.label} {score_text(item)}"
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
            "panels": panels,
        }

    def _truth_panel(self, truth: Truth, missed: set[int]) -> dict[str, Any]:
        if isinstance(truth, TextsTruth):
            return {"name": "truth", "shapes": [], "text": "\n".join(dict.fromkeys(truth.texts))}
        shapes = []
        objects: Sequence[TrueObject | TruePhrase] = truth.objects
        for index, true in enumerate(objects):
            box = true.box_xyxy or (0.0, 0.0, 0.0, 0.0)
            item: Item = Detection(box, true.label, 1.0)
            has_masks = self.evaluator.log.task == "instance_segmentation"
            if has_masks and isinstance(true.segmentation, list):
                rings: Any = [np.reshape(ring, (-1, 2)).tolist() for ring in true.segmentation]
                item = Instance(box, true.label, 1.0, rings)
            kind = "missed" if index in missed else "truth"
            shapes.append({"label": true.label, "kind": kind, **_shape(item)})
        return {"name": "truth", "shapes": shapes, "text": ""}


def axis_maximum(intervals: Mapping[str, Mapping[str, Interval]]) -> int:
    """Return the end of an axis from 0 for all intervals: a multiple of ten."""
    highest = 0.1
    for metrics in intervals.values():
        for interval in metrics.values():
            highest = max(highest, interval.high if interval.is_finite else 0)
    return 10 * math.ceil(highest / 10)


def thumbnail(data: bytes) -> str:
    """Return a small JPEG of the upright image as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = rgb_of(ImageOps.exif_transpose(image))
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _shape(item: Item) -> dict[str, Any]:
    is_filled = isinstance(item, Instance) and bool(item.polygons_xy)
    if isinstance(item, Instance) and item.polygons_xy:
        rings: Sequence[Any] = item.polygons_xy
    else:
        rings = [item.quad_xy if isinstance(item, TextRegion) else corners(item.box_xyxy)]
    rounded = [np.round(np.array(ring, dtype=float), 1).tolist() for ring in rings]
    return {"rings": rounded, "is_filled": is_filled}


def report_files(out: Path) -> tuple[Path, Path]:
    return out / "report.html", out / "report.json"


def write_report(outputs: Outputs, evaluation: Evaluation, gallery: Gallery) -> dict[str, Any]:
    """Return the document in report.json."""
    page, values = report_files(outputs.folder)
    intervals = {} if evaluation.measured is None else evaluation.measured.intervals
    curves = {}
    for model, details in evaluation.details.items():
        if details.precisions:
            curves[model] = details.precisions
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pieces = environment.get_template("report.html").generate(
        title=heading(evaluation),
        sentences=sentences(evaluation),
        intervals=intervals,
        maximum=axis_maximum(intervals),
        curves=curves,
        tables=tables(evaluation),
        cards=map(gallery.card, evaluation.gallery),
    )
    with outputs.claim(page).open("w", encoding="utf-8") as file:
        file.writelines(pieces)  # cards one by one
    document = json_document(evaluation, gallery.samples)
    outputs.write(values, json.dumps(document, indent=2) + "\n")
    return document
