"""The history of runs: the ratios of each to every peer, a line of JSON for a run.

A ratio is known by its workload, model and measure, and by the peer at its setting, so that runs
with other peers, and the short run with only one, are compared by the ratios that they share.
"""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from laboratory.bench.results import MEASURES, TIMES, TITLES
from laboratory.bench.rounds.servers import OURS, OURS_DEFAULT
from loadtest.figures import table

TOLERANCE = 0.15
CPU = "CPU ms"  # per request
_MAX_SHOWN = 6
_NUM_COMPARED = 3

# ours ÷ peer, by workload, model and measure, and by the peer
Ratios = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class HistoryRow:
    """One run."""

    commit: str  # "+" at its end: with changes that are not committed
    date: str  # YYYY-MM-DD
    machine: str
    ratios: Ratios

    def best(self, name: str) -> float | None:
        """Return the ratio to the best peer by this measure, or None if the run lacks it."""
        ratios = self.ratios.get(name, {}).values()
        if not ratios:
            return None
        return max(ratios) if is_time(name) else min(ratios)


@dataclass(frozen=True, slots=True)
class Change:
    """A ratio of two runs."""

    name: str
    peers: str  # comma-separated
    now: float
    before: float
    row: HistoryRow  # run of `before`

    @property
    def is_of_processor(self) -> bool:
        return CPU in self.name

    @property
    def is_worse(self) -> bool:
        """Return True beyond the tolerance."""
        change = self.now / self.before
        return change > 1 + TOLERANCE if is_time(self.name) else change < 1 - TOLERANCE


def is_time(name: str) -> bool:
    """Return True if less is better."""
    return name.split(" | ")[2] in {CPU, *(MEASURES[each][0] for each in TIMES)}


def ratios_of(written: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the ratios of a run that is written as JSON (bench.json), and those of processor time.

    A name is `(a) mixed | florence-2-base-random | requests/s`, with ` | default` at the model's
    default precision. Other work on the machine changes processor time little.
    """
    of_measures = dict[str, dict[str, float]]()
    of_processor = dict[str, dict[str, float]]()
    for compared in written["comparisons"]:
        target = compared["target"]
        workload = target["workload"]
        is_float32 = target["precision"] == "float32"
        servers = {
            server["server"]: server["workloads"][workload]
            for server in written["servers"]
            if server["model"] == target["model"] and workload in server["workloads"]
        }
        ours = servers[OURS.name if is_float32 else OURS_DEFAULT.name]
        for name in (OURS.name, OURS_DEFAULT.name):
            servers.pop(name, None)

        start = f"{TITLES[workload]} | {target['model']}"
        end = "" if is_float32 else f" | {target['precision']}"
        measure = target["measure"]
        of_measures[f"{start} | {MEASURES[measure][0]}{end}"] = _to_peers(ours, servers, measure)
        of_processor[f"{start} | {CPU}{end}"] = _to_peers(ours, servers, "cpu_s_per_request")
    return of_measures | of_processor


def _to_peers(
    ours: Mapping[str, float], peers: Mapping[str, Mapping[str, float]], measure: str
) -> dict[str, float]:
    return {name: round(ours[measure] / peer[measure], 3) for name, peer in peers.items()}


def read_history(file: Path) -> tuple[HistoryRow, ...]:
    """Return all rows, oldest first; none if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return tuple(HistoryRow(**json.loads(line)) for line in lines)


def append_row(row: HistoryRow, file: Path) -> None:
    with file.open("a", encoding="utf-8") as history:
        history.write(f"{json.dumps(asdict(row))}\n")


def changes(ratios: Ratios, history: Sequence[HistoryRow]) -> Iterator[Change]:
    """Yield each of `ratios` and the one before: the median of the last three rows that have it for
    one of its peers.

    With fewer rows it is the last. With several common peers, both are medians: what one peer alone
    does, or one slow minute of a machine, is not a change of ours.
    """
    for name, by_peer in ratios.items():
        found = []
        for row in reversed(history):
            before_by_peer = row.ratios.get(name, {})
            if common := sorted(by_peer.keys() & before_by_peer.keys()):
                now = statistics.median(by_peer[peer] for peer in common)
                before = statistics.median(before_by_peer[peer] for peer in common)
                found.append(Change(name, ", ".join(common), now, before, row))
        if len(last := found[:_NUM_COMPARED]) == _NUM_COMPARED:
            last.sort(key=lambda change: change.now / change.before)
            yield last[_NUM_COMPARED // 2]
        else:
            yield from last[:1]


def history_table(history: Sequence[HistoryRow]) -> str:
    """Return a column for each of the last runs, oldest first; bold is worse than the runs before
    by over 15 %.
    """
    shown = history[-_MAX_SHOWN:]
    names = dict.fromkeys(chain.from_iterable(row.ratios for row in shown))
    header = ["ours ÷ best peer", *(f"{row.commit}, {row.date}" for row in shown)]
    rows = [["machine", *(row.machine for row in shown)]]
    for name in names:
        cells = [name.replace(" | ", ", ")]
        for index in range(-len(shown), 0):
            best = history[index].best(name)
            if best is None:
                cells.append("")
                continue
            found = changes({name: history[index].ratios[name]}, history[:index])
            is_worse = any(change.is_worse for change in found)
            cells.append(f"**{best:.2f}**" if is_worse else f"{best:.2f}")
        rows.append(cells)
    return table(header, rows)
