"""The results as tables, sentences, Markdown and JSON."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import chain
from typing import Any

from diptych_client.evaluation.evaluator import Evaluation
from diptych_client.evaluation.statistics import Details

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
    max_count: int = 0  # of a matrix of counts, whose cells are coloured


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
        failed = tuple((failure.image, failure.model, failure.error) for failure in run.failed)
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
        rows.append((title, *(_number(getattr(speed, name)) for speed in speeds)))
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
            counts.append((label, *map(str, asdict(agreement).values())))
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


def json_document(evaluation: Evaluation, titles: Mapping[int, str]) -> dict[str, Any]:
    """Return the report as JSON's values, NaN as null; `titles` are those of samples."""
    worst = []
    for ranked in evaluation.gallery:
        row = {"sample": titles.get(ranked.sample_index, ""), "error": ranked.error}
        worst.append(row | {"disagreement": ranked.disagreement, "kinds": sorted(ranked.kinds)})
    document: dict[str, Any] = _finite({**asdict(evaluation), "gallery": worst})
    return document | {"sentences": sentences(evaluation)}


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
