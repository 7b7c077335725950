"""The short run: our service and one peer side by side, and what got worse since the last run in the history.

Both servers run at the same time and are loaded in turns, so that other work on the machine disturbs both alike.
"""

import importlib.util
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from loadtest.bench.client import Round
from loadtest.bench.history import TOLERANCE, Change, HistoryRow, changes, ratios_of
from loadtest.bench.material import ModelMaterial
from loadtest.bench.measurement import MeasuredServer, Measurement, started
from loadtest.bench.results import Run, as_json
from loadtest.bench.servers import OURS, Server, short_peer
from loadtest.bench.workloads import WorkloadName, short_plan
from loadtest.processes import ROOT


def run_short(models: Sequence[ModelMaterial], folder: Path, deadline_s: float) -> Run:
    """Measure the models until `deadline_s` on the clock of time.monotonic(); a model that is late is left out."""
    store = os.environ.get("BENTOML_HOME", str(ROOT / ".bentoml"))
    ours = replace(OURS, environment={**OURS.environment, "BENTOML_HOME": store})
    servers = (ours, short_peer(importlib.util.find_spec("litserve") is not None))
    measurements = [each for model in models for each in _measured(model, servers, folder, deadline_s)]
    return Run(models, measurements, facts={})


def _measured(
    model: ModelMaterial, servers: Sequence[Server], folder: Path, deadline_s: float
) -> Iterator[Measurement]:
    with ExitStack() as stack:
        start_s = time.monotonic()
        running = [stack.enter_context(started(model, server, folder)) for server in servers]
        requests_s = [each.warm_up() for each in running]
        ready_s = time.monotonic() - start_s
        rounds = _rounds(running, deadline_s)
        for server, each, request_s, own in zip(servers, running, requests_s, rounds, strict=True):
            yield Measurement(model.id, server, request_s, ready_s, own, each.batch_sizes(), each.precision())


def _rounds(running: Sequence[MeasuredServer], deadline_s: float) -> list[dict[WorkloadName, tuple[Round, ...]]]:
    """Return the rounds of each server; those of one workload alternate between the servers."""
    rounds: list[dict[WorkloadName, tuple[Round, ...]]] = [{} for _ in running]
    for plan in short_plan():
        for _ in range(plan.num_rounds):
            if (left_s := deadline_s - time.monotonic()) < 0:
                return rounds
            one = replace(plan, num_rounds=1, limit_s=min(plan.limit_s, left_s))
            for own, server in zip(rounds, running, strict=True):
                if answered := tuple(each for each in server.run(one) if each.samples):
                    own[plan.workload] = own.get(plan.workload, ()) + answered
    return rounds


def short_report(run: Run, history: Sequence[HistoryRow]) -> str:
    """Return a line for each ratio, and what is worse than before."""
    found = list(changes(ratios_of(as_json(run)), history))
    return "\n".join([*map(_line, found), *_verdict(found)])


def _line(change: Change) -> str:
    row = change.row
    before = f"{change.before:.2f} at {row.commit} of {row.date} ({row.machine})"
    return f"{change.name.replace(' | ', ', ')}: ours ÷ {change.peers} {change.now:.2f}, before {before}"


def _verdict(found: Sequence[Change]) -> Iterator[str]:
    for change in found:
        if change.is_worse:
            yield f"WORSE by more than {TOLERANCE:.0%}: {_line(change)}"
    if not any(change.is_worse for change in found):
        yield f"{len(found)} ratios, none worse by more than {TOLERANCE:.0%}"
