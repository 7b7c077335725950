"""The report of a run: tables in Markdown, and a picture of latency against throughput."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib import color_sequences
from matplotlib.figure import Figure

from laboratory.bench.measures import (
    COLUMNS,
    Numbers,
    num_equal,
    num_other_length,
    numbers_of,
    profile_of,
)
from laboratory.bench.results import MEASURES, TITLES, Run, comparisons, is_ours
from laboratory.bench.rounds.workloads import NUM_CLIENTS, WorkloadName
from loadtest.figures import milliseconds, shown, table

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
    cuts = []
    for measurement in run.measurements:
        for workload, rounds in measurement.rounds.items():
            if any(one.is_cut for one in rounds):
                named = f"{measurement.model}, {measurement.server.name}, {workload}"
                cuts.append(f"- {named}: a round was cut at its time limit")
    cuts += [f"- {one.model}, {one.server}: {one.reason}" for one in run.skipped]
    sections = {
        "Ours ÷ best peer": ratio_table(run),
        "Every server": _server_table(run),
        "Same answers": _answers_table(run),
        "Where the time of a request goes, mean ms": _profile_table(run),
        "Not run, or cut": "\n".join(cuts) or "Nothing.",
    }
    bodies = "".join(f"\n## {title}\n\n{body}\n" for title, body in sections.items())
    return f"# Bench\n\n{facts}\n{bodies}"


def ratio_table(run: Run) -> str:
    header = ["workload", "model", "measure", "ours", "best peer", "peer"]
    header += ["ours ÷ peer", "target", ""]
    rows = []
    for each in comparisons(run):
        name, factor = MEASURES[each.target.measure]
        is_default = each.target.precision == "default"
        rows.append(
            [
                TITLES[each.target.workload],
                f"{each.target.model}, default precision" if is_default else each.target.model,
                name,
                shown(each.our_value * factor),
                shown(each.peer_value * factor),
                each.best_peer,
                f"{each.ratio:.2f}",
                each.target.bound_text,
                _VERDICTS[each.is_met],
            ]
        )
    return table(header, rows)


def _server_table(run: Run) -> str:
    header = ["model", "server", "setting", "", "answered", "req/s", "tokens/s"]
    header += ["p50 ms", "p95 ms", "p99 ms", "CPU ms"]
    rows = []
    for measurement in run.measurements:
        server = measurement.server
        for workload, rounds in measurement.rounds.items():
            numbers = numbers_of(rounds)
            times_s = (numbers.p50_s, numbers.p95_s, numbers.p99_s, numbers.cpu_s_per_request)
            rows.append(
                [
                    measurement.model,
                    server.name,
                    server.description,
                    _LETTERS[workload],
                    f"{numbers.num_answered} of {numbers.num_requests}",
                    shown(numbers.requests_per_s),
                    shown(numbers.tokens_per_s),
                    *map(milliseconds, times_s),
                ]
            )
    return table(header, rows)


def _answers_table(run: Run) -> str:
    """Return how many answers of each peer equal ours, and how many have the wrong length."""
    header = ["model", "peer", "equal to ours", "not of the requested length, ours / peer"]
    endless = {model.id for model in run.models if model.is_endless}
    rows = []
    for ours in run.ours():
        for peer in run.peers_of(ours.model):
            pairs = [num_equal(of, peer.rounds.get(name, ())) for name, of in ours.rounds.items()]
            equal = f"{sum(equal for equal, _ in pairs)} of {sum(both for _, both in pairs)}"
            lengths = ""
            if ours.model in endless:
                counts = (num_other_length(each.all_rounds) for each in (ours, peer))
                lengths = " / ".join(map(str, counts))
            name = f"{ours.model} ({ours.server.name})"
            rows.append([name, peer.server.name, equal, lengths])
    return table(header, rows)


def _profile_table(run: Run) -> str:
    rows = []
    for measurement in run.ours():
        server = measurement.server.name
        model = measurement.model if server == "diptych" else f"{measurement.model}, {server}"
        for workload, rounds in measurement.rounds.items():
            profile = profile_of(list(chain.from_iterable(one.samples for one in rounds)))
            means = [shown(profile.stages_ms[column]) for column in COLUMNS]
            num_requests = str(profile.num_requests)
            rows.append(
                [model, _LETTERS[workload], num_requests, *means, shown(profile.latency_ms)]
            )
    return table(["model", "", "requests", *COLUMNS, "all"], rows)


def write_plot(run: Run, file: Path) -> None:
    """Draw a panel per model and percentile, a line per server, a point per client count."""
    lines: dict[str, dict[str, list[tuple[int, Numbers]]]] = {}
    for each in run.measurements:
        loads = [load for load in _PLOTTED if load in each.rounds]
        if len(loads) > 1:
            name = each.server.name
            title = name if is_ours(each) else f"{name}: {each.server.description}"
            points = [(NUM_CLIENTS[load], numbers_of(each.rounds[load])) for load in loads]
            lines.setdefault(each.model, {})[title] = points
    width, height = _PANEL_INCHES
    figure = Figure(
        figsize=(width * len(lines), height * len(_PERCENTILES) + 1), layout="constrained"
    )
    panels = figure.subplots(len(_PERCENTILES), len(lines), squeeze=False)
    names = dict.fromkeys(chain.from_iterable(lines.values()))
    colors = {name: color_sequences["tab20"][index % 20] for index, name in enumerate(names)}
    drawn: dict[str, Any] = {}
    for column, (model, of_model) in enumerate(lines.items()):
        for row, percentile in enumerate(_PERCENTILES):
            panel = panels[row][column]
            drawn |= _draw(panel, percentile, of_model, colors)
            panel.set_title(f"{model}, {percentile.removesuffix('_s')}", fontsize=10)
    figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=100)


def _draw(
    panel: Any,
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
    panel.set_xlabel("requests/s (beside a point: clients)")
    panel.set_ylabel("ms")
    panel.set_yscale("log")
    panel.grid(visible=True, which="both", alpha=0.3)
    return drawn
