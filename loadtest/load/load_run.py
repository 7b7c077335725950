"""One run, from Locust's events: opens the session, follows the plan, collects samples, writes the report.

A process alone does all of it. A master has plan, samples and report; a worker has the session, and its samples go to
the master with Locust's own reports.
"""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gevent
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.load.facts import facts_of
from loadtest.load.offer import offer_of
from loadtest.load.options import Options, options_of
from loadtest.load.plans import Plan, Slope, Stepping, StepTimes, Window
from loadtest.load.recorder import Recorder
from loadtest.load.report import LoadReport, write_report
from loadtest.load.rest import GRACE_S, RestSender
from loadtest.load.samples import DEFECTS
from loadtest.load.saturation import next_level
from loadtest.load.service_metrics import Scrape, scraped
from loadtest.load.session import Session, Target
from loadtest.load.traffic_mix import MixError, TrafficMix, read_mix
from loadtest.load.users import RATE_PER_USER, DiptychUser
from loadtest.load.windows import numbers_by_api, numbers_of, window_numbers

_SCRAPE_EVERY_S = 2.0
_WARM_UP_S, _SETTLE_S, _MEASURED_S = 10.0, 5.0, 20.0  # of steps
_WORKER_REPORTS_S = 3.5  # above Locust's interval
_MANUAL_WINDOW_S = 10.0
_MAX_SLOPE_WINDOWS, _MIN_SLOPE_WINDOW_S = 10, 10.0
_LAST_REPORTS_S = 5.0
_API_KEY = "LOADTEST_API_KEY"  # environment variable


class LoadRun:
    """What one process does in a run, or in several, one after the other."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._recorder = Recorder()
        self._scrapes: list[Scrape] = []
        self._num_failed_scrapes = 0
        self._scraping: gevent.Greenlet | None = None
        self._session: Session | None = None
        self._plan: Plan | None = None
        self._start_s = 0.0
        self._num_processes = 1
        self._service = ""  # what the report calls it

    def listen(self) -> None:
        """Follow Locust's events."""
        events = self._environment.events
        events.test_start.add_listener(self._start)
        events.test_stop.add_listener(self._stop)
        events.report_to_master.add_listener(self._report_to_master)
        events.worker_report.add_listener(self._add_report)

    def check(self) -> None:
        """Raise `MixError` where the mix is wrong or the service lacks what it asks, `OSError` where that is not there.

        A worker knows the service only when a test starts, and a page may ask for its address.
        """
        mix = self.mix
        if self._environment.host and not isinstance(self._environment.runner, WorkerRunner):
            rest = RestSender(self._target.url, 1, self._target.api_key)
            offer_of(mix, json.loads(rest.get("/v1/tasks")))
            rest.close()

    def new_plan(self) -> Plan:
        """Return what the options ask for."""
        options = self._options
        match options.scenario:
            case "saturation":
                times = StepTimes(_WARM_UP_S, _SETTLE_S, _MEASURED_S, self.mix.longest_slo_s + _WORKER_REPORTS_S)
                self._plan = Stepping(self._next_level, times, options.seconds)
            case "ramp":
                self._plan = _slope(options.first_level, options)
            case _:
                self._plan = _slope(options.level, options)
        return self._plan

    def num_under_way(self) -> int:
        """Return how many requests are not answered yet."""
        return self._recorder.num_under_way

    @property
    def patience_s(self) -> float:
        """How long the last answer may take, and word of it."""
        return self.mix.longest_deadline_s + GRACE_S + _WORKER_REPORTS_S

    @property
    def level_per_user(self) -> float:
        """What one user adds to a level."""
        return RATE_PER_USER if self._options.arrivals == "open" else 1.0

    @property
    def _options(self) -> Options:
        return options_of(self._environment.parsed_options)

    @property
    def mix(self) -> TrafficMix:
        """What is asked."""
        return read_mix(Path(self._options.mix))

    @property
    def _target(self) -> Target:
        url = str(self._environment.host)
        return Target(url, self._options.grpc_address(url), os.environ.get(_API_KEY))

    def _next_level(self, windows: Sequence[Window]) -> float | None:
        slos_ms = self.mix.slos_ms
        steps = [self._recorder.step(window, slos_ms) for window in windows]
        return next_level(steps, self._options.first_level, self.level_per_user)

    def _start(self, **_: Any) -> None:
        """Begin a test; Locust stops it, and tells why, where the service is not there or lacks what is asked."""
        self._recorder.clear()
        self._start_s = time.time()
        runner = self._environment.runner
        self._num_processes = runner.worker_count if isinstance(runner, MasterRunner) else 1
        try:
            if not isinstance(runner, MasterRunner):
                self._open_session()
            if not isinstance(runner, WorkerRunner):
                self._begin_report()
        except (OSError, MixError) as error:
            self._environment.process_exit_code = 1
            raise StopTest(f"{self._target.url}: {error}") from error

    def _open_session(self) -> None:
        session = Session(self._target, self.mix, self._recorder, self._environment, self._options.max_outstanding)
        session.open()
        self._session = DiptychUser.session = session
        DiptychUser.is_open_loop = self._options.arrivals == "open"

    def _begin_report(self) -> None:
        rest = RestSender(self._target.url, 1, self._target.api_key)
        models = json.loads(rest.get("/v1/models"))["data"]
        listed = ", ".join(f"{model['id']} ({model['precision']})" for model in models)
        self._service = f"{self._target.url}: {listed}"
        self._scrapes, self._num_failed_scrapes = [], 0
        self._scraping = gevent.spawn(self._scrape, rest)

    def _stop(self, **_: Any) -> None:
        """End a test."""
        if self._session is not None:
            session, self._session = self._session, None
            session.close()
        if self._scraping is not None:
            self._scraping.kill()
            self._scraping = None
            self._wait_for_reports()
            self._report(time.time())

    def _wait_for_reports(self) -> None:
        """Wait for what workers have not told yet."""
        deadline_s = time.monotonic() + _LAST_REPORTS_S
        while self._recorder.num_under_way and time.monotonic() < deadline_s:
            gevent.sleep(0.1)

    def _report(self, stop_s: float) -> None:
        """Write the report; a defect of the service makes the status of the process 1."""
        samples = self._recorder.samples
        if not samples:
            return
        mix, options = self.mix, self._options
        facts = facts_of(mix, options, self._service, self._num_processes, stop_s - self._start_s)
        report = LoadReport(
            {**facts, "metrics": f"read {len(self._scrapes)} times, {self._num_failed_scrapes} times in vain"},
            options.unit,
            mix.slos_ms,
            [window_numbers(window, samples, self._scrapes, mix.slos_ms) for window in self._windows(stop_s)],
            numbers_of(samples, mix.slos_ms),
            numbers_by_api(samples, mix.slos_ms),
        )
        write_report(report, Path(options.results))
        self._environment.process_exit_code = 1 if DEFECTS & report.total.statuses.keys() else 0

    def _windows(self, stop_s: float) -> list[Window]:
        """Return the windows of the plan that are over; without any, parts of the time with the rate that there was."""
        planned = [] if self._plan is None else self._plan.windows()
        return [window for window in planned if window.end_s <= stop_s] or self._parts(stop_s)

    def _parts(self, stop_s: float) -> list[Window]:
        num_parts = max(1, int((stop_s - self._start_s) / _MANUAL_WINDOW_S))
        starts = [self._start_s + index * _MANUAL_WINDOW_S for index in range(num_parts)]
        parts = [Window(0.0, start_s, start_s + _MANUAL_WINDOW_S) for start_s in starts]
        return [part.at_level(self._recorder.num_due(part) / part.seconds) for part in parts]

    def _scrape(self, rest: RestSender) -> None:
        """Read the service's metrics again and again; under overload that may fail, which the report tells."""
        while True:
            try:
                self._scrapes.append(scraped(rest.get, time.time()))
            except OSError:
                self._num_failed_scrapes += 1
            gevent.sleep(_SCRAPE_EVERY_S)

    def _report_to_master(self, data: dict[str, Any], **_: Any) -> None:
        data["load"] = self._recorder.take_report()

    def _add_report(self, data: dict[str, Any], **_: Any) -> None:
        self._recorder.add_report(data["load"])


def _slope(first_level: float, options: Options) -> Slope:
    num_windows = max(1, min(_MAX_SLOPE_WINDOWS, int(options.seconds / _MIN_SLOPE_WINDOW_S)))
    return Slope(first_level, options.level, options.seconds, num_windows)
