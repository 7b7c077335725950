"""The report of a run: tables in Markdown, and a picture of latency against throughput."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import color_sequences
from matplotlib.figure import Figure

from laboratory.bench.limits import Share
from laboratory.bench.measures import (
    COLUMNS,
    Numbers,
    num_equal,
    num_other_length,
    numbers_of,
    profile_of,
)
from laboratory.bench.results import MEASURES, TITLES, Comparison, Run, comparisons, is_ours
from laboratory.bench.rounds.client import Round
from laboratory.bench.rounds.measurement import Measurement
from laboratory.bench.rounds.workloads import NUM_CLIENTS, WorkloadName
from loadtest.figures import milliseconds, percent, shown, table

_LETTERS: dict[WorkloadName, str] = {
    "mixed": "a",
    "mixed_4": "a, 4 clients",
    "one_image": "b",
    "decode_heavy": "c",
    "single": "d",
}
_VERDICTS = {True: "met", False: "**missed**", None: ""}
# the same requests, more and more clients
_PLOTTED: tuple[WorkloadName, ...] = ("single", "mixed_4", "mixed")
_PERCENTILES = ("p50_s", "p95_s")
_PANEL_INCHES = (5.0, 4.0)


def markdown(run: Run) -> str:
    """Return all tables; docs/tables.py copies some of them by their titles."""
    facts = "\n".join(f"- {name}: {value}" for name, value in run.facts.items())
    sections = [
        ("Ours ÷ best peer", ratio_table(run)),
        ("Every server", _server_table(run)),
        ("Same answers", _answers_table(run)),
        ("The limit", f"{_rate_table(run)}\n\n{_share_table(run)}\n\n{_step_table(run)}"),
        ("Where the time of a request goes, mean ms", _profile_table(run)),
        ("Not run, or cut", _cuts(run)),
    ]
    return f"# Bench\n\n{facts}\n" + "".join(
        f"\n## {title}\n\n{body}\n" for title, body in sections
    )


def ratio_table(run: Run) -> str:
    header = [
        "workload",
        "model",
        "measure",
        "ours",
        "best peer",
        "peer",
        "ours ÷ peer",
        "target",
        "",
    ]
    return table(header, map(_ratio_row, comparisons(run)))


def _ratio_row(comparison: Comparison) -> list[str]:
    target = comparison.target
    name, factor = MEASURES[target.measure]
    values = (shown(comparison.our_value * factor), shown(comparison.peer_value * factor))
    verdict = _VERDICTS[comparison.is_met]
    row = [
        TITLES[target.workload],
        comparison.model,
        name,
        *values,
        comparison.best_peer,
        f"{comparison.ratio:.2f}",
    ]
    return [*row, target.bound_text, verdict]


def _server_table(run: Run) -> str:
    header = [
        "model",
        "server",
        "setting",
        "",
        "answered",
        "req/s",
        "tokens/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "CPU ms",
    ]
    return table(
        header, (row for measurement in run.measurements for row in _server_rows(measurement))
    )


def _server_rows(measurement: Measurement) -> Iterator[list[str]]:
    server = measurement.server
    for workload, rounds in measurement.rounds.items():
        numbers = numbers_of(rounds)
        answered = f"{numbers.num_answered} of {numbers.num_requests}"
        rates = [shown(numbers.requests_per_s), shown(numbers.tokens_per_s)]
        times_s = (numbers.p50_s, numbers.p95_s, numbers.p99_s, numbers.cpu_s_per_request)
        named = [measurement.model, server.name, server.description, _LETTERS[workload]]
        yield [*named, answered, *rates, *map(milliseconds, times_s)]


def _answers_table(run: Run) -> str:
    """Return how many answers of each peer equal ours, and how many have another length than
    requested.
    """
    header = ["model", "peer", "equal to ours", "not of the requested length, ours / peer"]
    return table(
        header,
        (_answers_row(ours, peer, run) for ours in run.ours() for peer in run.peers_of(ours.model)),
    )


def _answers_row(ours: Measurement, peer: Measurement, run: Run) -> list[str]:
    pairs = [
        num_equal(rounds, peer.rounds.get(workload, ())) for workload, rounds in ours.rounds.items()
    ]
    equal = f"{sum(pair[0] for pair in pairs)} of {sum(pair[1] for pair in pairs)}"
    is_endless = any(model.id == ours.model and model.is_endless for model in run.models)
    lengths = (
        " / ".join(str(num_other_length(_all_rounds(each))) for each in (ours, peer))
        if is_endless
        else ""
    )
    return [f"{ours.model} ({ours.server.name})", peer.server.name, equal, lengths]


def _all_rounds(measurement: Measurement) -> list[Round]:
    return [one for rounds in measurement.rounds.values() for one in rounds]


def _rate_table(run: Run) -> str:
    header = ["cores", "float32 products, G/s", "int8 products, G/s", "memory, GB/s"]
    rates = (
        (rate.num_threads, rate.float32_per_s, rate.int8_per_s, rate.memory_bytes_per_s)
        for rate in run.rates
    )
    return table(
        header,
        ([str(cores), *(shown(value / 1e9) for value in values)] for cores, *values in rates),
    )


def _share_table(run: Run) -> str:
    header = [
        "model",
        "part",
        "",
        "G operations, or GB",
        "ms",
        "G/s",
        "of one core's limit",
        "of all cores'",
    ]
    return table(header, map(_share_row, run.shares))


def _share_row(share: Share) -> list[str]:
    speed = [shown(share.work / 1e9), milliseconds(share.measured_s), shown(share.rate / 1e9)]
    return [
        share.model,
        share.part,
        share.precision,
        *speed,
        percent(share.one_core),
        percent(share.all_cores),
    ]


def _step_table(run: Run) -> str:
    header = ["model, one thread", "sequences", "step, ms", "in the model, ms", "outside it"]
    rows = (
        (
            step.model,
            str(step.num_sequences),
            *map(milliseconds, (step.step_s, step.model_s)),
            percent(step.overhead),
        )
        for step in run.steps
    )
    return table(header, rows)


def _profile_table(run: Run) -> str:
    header = ["model", "", "requests", *COLUMNS, "all"]
    return table(header, (row for measurement in run.ours() for row in _profile_rows(measurement)))


def _profile_rows(measurement: Measurement) -> Iterator[list[str]]:
    model = measurement.model
    server = measurement.server.name
    for workload, rounds in measurement.rounds.items():
        profile = profile_of([sample for one in rounds for sample in one.samples])
        means = [shown(profile.stages_ms[column]) for column in COLUMNS]
        named = [model if server == "diptych" else f"{model}, {server}", _LETTERS[workload]]
        yield [*named, str(profile.num_requests), *means, shown(profile.latency_ms)]


def _cuts(run: Run) -> str:
    cut = [
        f"- {measurement.model}, {measurement.server.name}, {workload}: a round was cut at its time"
        " limit"
        for measurement in run.measurements
        for workload, rounds in measurement.rounds.items()
        if any(one.is_cut for one in rounds)
    ]
    skipped = [f"- {one.model}, {one.server}: {one.reason}" for one in run.skipped]
    return "\n".join([*cut, *skipped]) or "Nothing."


def write_plot(run: Run, file: Path) -> None:
    """Draw a panel for each model and percentile, a line for each server, a point for each number
    of clients.
    """
    models = dict.fromkeys(measurement.model for measurement in run.measurements)
    lines = {model: found for model in models if (found := _lines(run, model))}
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(width * len(lines), height * len(_PERCENTILES) + 1), layout="constrained"
    )
    panels = figure.subplots(len(_PERCENTILES), len(lines), squeeze=False)
    names = dict.fromkeys(name for of_model in lines.values() for name in of_model)
    colors = {name: color_sequences["tab20"][index % 20] for index, name in enumerate(names)}
    drawn: dict[str, Any] = {}
    for column, (model, of_model) in enumerate(lines.items()):
        for row, percentile in enumerate(_PERCENTILES):
            drawn |= _draw(panels[row][column], model, percentile, of_model, colors)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=100)


def _lines(run: Run, model: str) -> dict[str, list[tuple[int, Numbers]]]:
    """Return the numbers of each server of a model by clients, where there are at least two
    points.
    """
    lines = {}
    for each in run.measurements:
        server = each.server
        name = each.server.name
        points = [
            (NUM_CLIENTS[load], numbers_of(each.rounds[load]))
            for load in _PLOTTED
            if load in each.rounds
        ]
        if each.model == model and len(points) > 1:
            lines[name if is_ours(each) else f"{name}: {server.description}"] = points
    return lines


def _draw(
    panel: Any,
    model: str,
    percentile: str,
    lines: Mapping[str, Sequence[tuple[int, Numbers]]],
    colors: Mapping[str, Any],
) -> dict[str, Any]:
    """Draw the lines of a model; return them by name."""
    drawn: dict[str, Any] = {}
    for name, points in lines.items():
        throughput = [numbers.requests_per_s for _, numbers in points]
        latency_ms = [getattr(numbers, percentile) * 1000 for _, numbers in points]
        width = 3.0 if name.startswith("diptych") else 1.0
        (drawn[name],) = panel.plot(
            throughput, latency_ms, "o-", color=colors[name], linewidth=width
        )
        for (num_clients, _), x, y in zip(points, throughput, latency_ms, strict=True):
            panel.annotate(
                str(num_clients), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7
            )
    panel.set_title(f"{model}, {percentile.removesuffix('_s')}", fontsize=10)
    panel.set_xlabel("requests/s (beside a point: clients)")
    panel.set_ylabel("ms")
    panel.set_yscale("log")
    panel.grid(visible=True, which="both", alpha=0.3)
    return drawn
