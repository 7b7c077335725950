"""One run, driven by Locust's events: opens the session, follows the plan, collects samples, writes
the report.

A single process does all of it. A master has plan, samples and report; a worker has the session,
and sends its samples to the master with Locust's own reports.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.figures import percent, processor_name
from loadtest.load.report import LoadReport, markdown, window_numbers
from loadtest.load.samples import DEFECTS, Recorder
from loadtest.load.senders.rest import GRACE_S, RestSender
from loadtest.load.session import Session, Target
from loadtest.load.traffic.plans import Stepping, StepTimes, Window
from loadtest.load.traffic.questions import offered_tasks
from loadtest.load.traffic.saturation import next_level
from loadtest.load.traffic.traffic_mix import MixError, TrafficMix, read_mix
from loadtest.load.users import RATE_PER_USER, DiptychUser

# parts of a step
_WARM_UP_S = 10.0
_SETTLE_S = 5.0
_MEASURED_S = 20.0
_WORKER_REPORTS_S = 3.5  # above Locust's interval
_MIN_WINDOW_S = 10.0  # without a plan
_MAX_WINDOWS = 10
_LAST_REPORTS_S = 5.0
_API_KEY = "LOADTEST_API_KEY"  # environment variable


class LoadRun:
    """One process in a run, or in several, one after the other."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._recorder = Recorder()
        self._session: Session | None = None
        self._plan: Stepping | None = None
        self._start_s = 0.0
        self._num_processes = 1
        self._service = ""  # its description in the report

    def listen(self) -> None:
        """Register for Locust's events."""
        events = self._environment.events
        events.test_start.add_listener(self.on_start)
        events.test_stop.add_listener(self.on_stop)
        events.report_to_master.add_listener(self.on_report_to_master)
        events.worker_report.add_listener(self.on_worker_report)

    def check(self) -> None:
        """Raise `MixError` if the mix is invalid or not offered, `OSError` without an answer.

        A worker receives the address of the service only when a test starts, and so may a page.
        """
        mix = self.mix
        if self._environment.host and not isinstance(self._environment.runner, WorkerRunner):
            offered_tasks(mix, self._get("/v1/tasks"))

    def new_plan(self) -> Stepping:
        """Return a plan of steps to the saturation point, starting now."""
        tail_s = self.mix.longest_slo_s + _WORKER_REPORTS_S
        times = StepTimes(_WARM_UP_S, _SETTLE_S, _MEASURED_S, tail_s)
        self._plan = Stepping(self._next_level, times, self._options.seconds)
        return self._plan

    @property
    def num_in_flight(self) -> int:
        return self._recorder.num_in_flight

    @property
    def last_answer_s(self) -> float:
        """Maximum time until the last answer is reported."""
        return self.mix.longest_deadline_s + GRACE_S + _WORKER_REPORTS_S

    @property
    def level_per_user(self) -> float:
        return RATE_PER_USER if self._is_open_loop else 1.0

    @property
    def mix(self) -> TrafficMix:
        return read_mix(Path(self._options.mix))

    @property
    def _options(self) -> Any:
        """Locust's options with those of locustfile.py; a master replaces its workers'."""
        return self._environment.parsed_options

    @property
    def _is_open_loop(self) -> bool:
        return bool(self._options.arrivals == "open")

    @property
    def _target(self) -> Target:
        url = str(self._environment.host)
        grpc_address = self._options.grpc or f"{urlsplit(url).hostname}:3001"
        return Target(url, grpc_address, os.environ.get(_API_KEY))

    def _get(self, path: str) -> Any:
        """Return a JSON document of the service."""
        rest = RestSender(self._target.url, 1, self._target.api_key)
        document = json.loads(rest.get(path))
        rest.close()
        return document

    def _next_level(self, windows: Sequence[Window]) -> float | None:
        slos_ms = self.mix.slos_ms
        steps = [self._recorder.step(window, slos_ms) for window in windows]
        return next_level(steps, self._options.first_level, self.level_per_user)

    def on_start(self, **_: Any) -> None:
        """Start a test; Locust stops it with a message if the service does not answer or lacks a
        part of the mix.
        """
        self._recorder.clear()
        self._start_s = time.time()
        runner = self._environment.runner
        self._num_processes = runner.worker_count if isinstance(runner, MasterRunner) else 1
        try:
            if not isinstance(runner, MasterRunner):
                session = Session(self._target, self.mix, self._recorder, self._environment)
                session.open()
                self._session = DiptychUser.session = session
                DiptychUser.is_open_loop = self._is_open_loop
            if not isinstance(runner, WorkerRunner):
                models = self._get("/v1/models")["data"]
                listed = ", ".join(f"{model['id']} ({model['precision']})" for model in models)
                self._service = f"{self._target.url}: {listed}"
        except (OSError, MixError) as error:
            self._environment.process_exit_code = 1
            raise StopTest(f"{self._target.url}: {error}") from error

    def on_stop(self, **_: Any) -> None:
        """Finish a test: write the report; defects of the service set the exit status to 1."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
        if isinstance(self._environment.runner, WorkerRunner):
            return
        deadline_s = time.monotonic() + _LAST_REPORTS_S
        while self._recorder.num_in_flight and time.monotonic() < deadline_s:
            gevent.sleep(0.1)
        samples = self._recorder.samples
        if not samples:
            return
        stop_s = time.time()
        slos_ms = self.mix.slos_ms
        planned = [] if self._plan is None else self._plan.windows()
        windows = [window for window in planned if window.end_s <= stop_s] or self._parts(stop_s)
        is_of_clients = bool(planned) and not self._is_open_loop
        report = LoadReport(
            facts=self._facts(stop_s),
            unit="clients" if is_of_clients else "requests/s",
            is_stepped=bool(planned),
            windows=[window_numbers(each, samples, slos_ms) for each in windows],
        )
        folder = Path(self._options.results)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "load.md").write_text(markdown(report), encoding="utf-8")
        has_defects = any(sample.status in DEFECTS for sample in samples)
        self._environment.process_exit_code = 1 if has_defects else 0

    def _facts(self, stop_s: float) -> Mapping[str, str]:
        mix = self.mix
        machine = (
            f"{processor_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end"
        )
        processes = f"{self._num_processes} process{'es' if self._num_processes > 1 else ''}"
        users = ", ".join(f"{weight} {api}" for api, weight in mix.apis.items())
        loop = "open loop, a Poisson process" if self._is_open_loop else "closed loop"
        return {
            "command": f"`{' '.join(['python -m locust', *sys.argv[1:]])}`",
            "sent from": f"{machine}; {processes}",
            "service": self._service,
            "traffic": (
                f"{users}; {percent(mix.images.fresh)} new images; {loop};"
                f" {stop_s - self._start_s:.0f} s"
            ),
            "latency": "from the due time of a request to its whole answer, of right answers",
        }

    def _parts(self, stop_s: float) -> list[Window]:
        """Return equal parts of a run without a finished step; their levels are their rates."""
        seconds = stop_s - self._start_s
        num_parts = min(_MAX_WINDOWS, max(1, int(seconds / _MIN_WINDOW_S)))
        windows = []
        for index in range(num_parts):
            start_s = self._start_s + index * seconds / num_parts
            part = Window(0.0, start_s, start_s + seconds / num_parts)
            windows.append(replace(part, level=self._recorder.num_due(part) / part.seconds))
        return windows

    def on_report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        """Add a worker's samples to its report."""
        data["load"] = self._recorder.take_report()

    def on_worker_report(self, data: dict[str, Any], **_: Any) -> None:
        """Keep the samples of a worker's report."""
        self._recorder.add_report(data["load"])
