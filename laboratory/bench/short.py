"""The short run: our service and one peer side by side, and what got worse since the last runs in
the history.

Both servers run at the same time and are loaded in turns, so that other work on the machine
disturbs both alike; the one that is not loaded is suspended.
"""

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from laboratory.bench.history import TOLERANCE, Change, HistoryRow, changes, ratios_of
from laboratory.bench.material.records import ModelMaterial
from laboratory.bench.results import Run, as_json
from laboratory.bench.rounds.client import Round
from laboratory.bench.rounds.measurement import MeasuredServer, Measurement, started
from laboratory.bench.rounds.servers import OURS, Server, short_peer
from laboratory.bench.rounds.workloads import WorkloadName, short_plan
from loadtest.processes import cpu_s, machine_cpu_s
from wire.artifacts.model_store import store_home

_MAX_OTHERS_CORES = 0.3


@dataclass(frozen=True, slots=True)
class ShortRun:
    """The run of one model."""

    run: Run
    # mean processor time per second of other processes on the machine, while both were loaded
    others_cores: float


def run_short(
    models: Sequence[ModelMaterial], folder: Path, deadline_s: float
) -> Iterator[ShortRun]:
    """Yield the run of each model.

    The remaining time until `deadline_s`, on time.monotonic()'s clock, is divided.
    """
    environment = {**OURS.environment, "BENTOML_HOME": str(store_home())}
    ours = replace(OURS, environment=environment)
    servers = (ours, short_peer(importlib.util.find_spec("litserve") is not None))
    for index, model in enumerate(models):
        left_s = deadline_s - time.monotonic()
        yield _short_run(
            model, servers, folder, deadline_s - left_s + left_s / (len(models) - index)
        )


def _short_run(
    model: ModelMaterial, servers: Sequence[Server], folder: Path, deadline_s: float
) -> ShortRun:
    with ExitStack() as stack:
        start_s = time.monotonic()
        running = [stack.enter_context(started(model, server, folder)) for server in servers]
        requests_s = [each.warm_up() for each in running]
        loaded_s = time.monotonic()
        others_s = _others_cpu_s()
        rounds = _rounds(running, deadline_s)
        others_cores = (_others_cpu_s() - others_s) / (time.monotonic() - loaded_s)
        ready_s = loaded_s - start_s
        measurements = []
        for server, each, request_s, own in zip(servers, running, requests_s, rounds, strict=True):
            measurements.append(
                Measurement(model.id, server, request_s, ready_s, own, each.precision())
            )
    return ShortRun(Run([model], measurements, facts={}), others_cores)


def _others_cpu_s() -> float:
    """Return the processor time of all processes that are neither this one nor its descendants."""
    return machine_cpu_s() - cpu_s(os.getpid())


def _rounds(
    running: Sequence[MeasuredServer], deadline_s: float
) -> list[dict[WorkloadName, tuple[Round, ...]]]:
    """Return the rounds of each server, which alternate.

    A late run has fewer rounds of every workload.
    """
    rounds: list[dict[WorkloadName, tuple[Round, ...]]] = [{} for _ in running]
    for plan in short_plan():
        if (left_s := deadline_s - time.monotonic()) < 0:
            break
        one = replace(plan, limit_s=min(plan.limit_s, left_s))
        for own, server in zip(rounds, running, strict=True):
            with ExitStack() as suspended:
                for other in (each for each in running if each is not server):
                    suspended.enter_context(other.suspended())
                answered = tuple(each for each in server.run(one) if each.samples)
            if answered:
                own[plan.workload] = own.get(plan.workload, ()) + answered
    return rounds


def short_report(run: Run, history: Sequence[HistoryRow], others_cores: float) -> str:
    """Return a line for each ratio, and what is worse than before.

    If other work took more than a little of the machine, only processor time is judged.
    """
    found = list(changes(ratios_of(as_json(run)), history))
    judged = [each for each in found if each.is_of_processor or others_cores <= _MAX_OTHERS_CORES]
    worse = [change for change in judged if change.is_worse]
    lines = list(map(_line, found))
    if len(judged) < len(found):
        lines.append(f"other work took {others_cores:.1f} cores: rates and times are not judged")
    if not found:
        lines.append("no ratio: the history has none of these, or the time was too short")
    lines += [f"WORSE by more than {TOLERANCE:.0%}: {_line(change)}" for change in worse]
    if found and not worse:
        counts = f"{len(judged)} of {len(found)} ratios judged"
        lines.append(f"{counts}, none worse by more than {TOLERANCE:.0%}")
    return "\n".join(lines)


def _line(change: Change) -> str:
    row = change.row
    before = f"{change.before:.2f} at {row.commit} of {row.date} ({row.machine})"
    return (
        f"{change.name.replace(' | ', ', ')}: ours ÷ {change.peers} {change.now:.2f}, before"
        f" {before}"
    )
