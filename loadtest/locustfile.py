"""Load on a running service: `locust -f loadtest/locustfile.py --host URL`, with --headless or with
Locust's page.

In the open loop each user is a Poisson process of `RATE_PER_USER`: no answer moves a due time, and
response times count from it. In the closed loop a user waits for each answer. Requests other than
answered ones have rows of their own: `task: status`. Failures are defects of the service only.
`--watch-pid` also watches the memory of a service on the same host.
"""

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import gevent
import grpc.experimental.gevent
import psutil
from gevent.pool import Pool
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.memory import MemoryWatch
from loadtest.senders import DEFECTS, GRACE_S, OK, Checker, GrpcSender, Reply, RestSender
from loadtest.traffic import Api, MixError, Question, Questions, offered_tasks, read_mix

grpc.experimental.gevent.init_gevent()

RATE_PER_USER = 0.5  # requests per second, in the open loop
NOT_SENT = "not_sent"  # due while the maximum of requests was in flight on this side
_MAX_REQUESTS = 256
_API_KEY = "LOADTEST_API_KEY"  # environment variable


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; Locust's page shows them too, and a master sends them to its workers."""
    add = parser.add_argument_group("Diptych's load test").add_argument
    arrivals = "open: half a request/s for each user; closed: each waits for its answers"
    add("--arrivals", choices=("open", "closed"), default="open", help=arrivals)
    mix = "traffic mix; a path on every worker"
    add("--mix", default=str(Path(__file__).with_name("traffic_mix.yaml")), help=mix)
    add("--grpc", default="", metavar="HOST:PORT", help="default: port 3001 of --host")
    watch = "process id of a service on this host, whose memory is watched"
    add("--watch-pid", type=int, metavar="PID", help=watch)
    growth = "status 1 if the memory of one of its processes grows by more"
    add("--max-growth-mb", type=float, default=20, metavar="MB", help=growth)
    kill = "kill one of its runners after each such time; 0: never"
    add("--kill-every-s", type=float, default=0, metavar="SECONDS", help=kill)


class Session:
    """Connections, questions and requests in flight of one process."""

    def __init__(self, environment: Environment) -> None:
        options: Any = environment.parsed_options
        url = str(environment.host)
        api_key = os.environ.get(_API_KEY)
        address = options.grpc or f"{urlsplit(url).hostname}:3001"
        self.is_open_loop = options.arrivals == "open"
        self.rng = random.Random()  # not seeded: workers must not send the same requests
        self._mix = read_mix(Path(options.mix))
        self._events = environment.events
        self._rest = RestSender(url, _MAX_REQUESTS, api_key)
        self._grpc = GrpcSender(address, url.startswith("https:"), api_key)
        self._senders: dict[Api, Callable[[Question], Reply]] = {
            "rest": self._rest.predict,
            "grpc": self._grpc.predict,
            "stream": self._rest.stream,
            "compare": self._rest.compare,
        }
        self._checker = Checker(self._mix.answers_repeat)
        self._questions: Questions
        self._pool = Pool(_MAX_REQUESTS)
        self._failed: list[gevent.Greenlet] = []

    def open(self) -> None:
        """Connect.

        Raise `OSError` if the service does not answer, `MixError` if it lacks a part of the mix.
        """
        self._questions = Questions(self._mix, self._rest.get("/v1/tasks"), self.rng)
        if self._mix.apis.get("grpc"):
            self._grpc.connect()

    def question(self, api: Api) -> Question:
        return self._questions.next(api)

    def start(self, question: Question, due_s: float) -> gevent.Greenlet | None:
        """Send in a new greenlet and return it, or return None if too many are in flight."""
        if self._pool.full():
            self._report(question, due_s, Reply(NOT_SENT))
            return None
        greenlet = self._pool.spawn(self._send, question, due_s)
        greenlet.link_exception(self._failed.append)
        return greenlet

    def close(self) -> None:
        """Wait for the requests in flight, close all connections, and raise a sender's failure."""
        self._pool.join(self._mix.deadline_s + 2 * GRACE_S)
        self._rest.close()
        self._grpc.close()
        for greenlet in self._failed:
            raise greenlet.exception

    def _send(self, question: Question, due_s: float) -> None:
        self._report(question, due_s, self._senders[question.api](question))

    def _report(self, question: Question, due_s: float, reply: Reply) -> None:
        """Report a reply to Locust; the times of refusals would distort those of answers."""
        latency_s = time.monotonic() - due_s
        status = self._checker.status(question, reply)
        name = question.task if status == OK else f"{question.task}: {status}"
        error = RuntimeError(status) if status in DEFECTS else None
        self._fire(question.api, name, latency_s, error)
        if reply.first_token_s is not None:
            self._fire("first token", question.task, reply.first_token_s - due_s, None)

    def _fire(self, api: str, name: str, latency_s: float, error: Exception | None) -> None:
        self._events.request.fire(
            request_type=api,
            name=name,
            response_time=latency_s * 1000,
            response_length=0,
            context={},
            exception=error,
        )


class DiptychUser(User):
    """Sends one request after the other over one interface."""

    abstract = True
    api: ClassVar[Api]
    session: ClassVar[Session]  # one per process; set when a test starts

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._due_s = time.monotonic()

    @task
    def send(self) -> None:
        """Send a request when it is due, or send one and wait for its answer."""
        question = self.session.question(self.api)
        if self.session.is_open_loop:
            self._due_s += self.session.rng.expovariate(RATE_PER_USER)
            gevent.sleep(max(0.0, self._due_s - time.monotonic()))
            self.session.start(question, self._due_s)
            return
        greenlet = self.session.start(question, time.monotonic())
        if greenlet is None:
            gevent.sleep(0.1)  # no busy loop while the pool is full
        else:
            greenlet.join()


class RestUser(DiptychUser):
    """One model over REST."""

    api = "rest"


class GrpcUser(DiptychUser):
    """One model over gRPC."""

    api = "grpc"


class StreamUser(DiptychUser):
    """One model over REST, as a stream."""

    api = "stream"


class CompareUser(DiptychUser):
    """All models over REST."""

    api = "compare"


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Set the users' weights, or exit if mix or service are unusable.

    A worker receives the address of the service only when a test starts, and so may a page.
    """
    options: Any = environment.parsed_options
    try:
        mix = read_mix(Path(options.mix))
        if environment.host and not isinstance(environment.runner, WorkerRunner):
            rest = RestSender(environment.host, 1, os.environ.get(_API_KEY))
            offered_tasks(mix, rest.get("/v1/tasks"))
            rest.close()
    except (OSError, MixError) as error:
        sys.exit(f"{environment.host}: {error}")
    users: list[type[User]] = []
    for user in (RestUser, GrpcUser, StreamUser, CompareUser):
        user.weight = mix.apis.get(user.api, 0)
        if user.weight:
            users.append(user)
    environment.user_classes = users
    if options.watch_pid is not None and not isinstance(environment.runner, WorkerRunner):
        watch_memory(environment)


def watch_memory(environment: Environment) -> None:
    """Watch the service until Locust quits, with status 1 if the memory of a process grew."""
    options: Any = environment.parsed_options
    try:
        watch = MemoryWatch(options.watch_pid, options.kill_every_s)
    except psutil.NoSuchProcess as error:
        sys.exit(f"--watch-pid: {error}")
    greenlet = gevent.spawn(watch.run)

    @environment.events.quitting.add_listener
    def report(**_: Any) -> None:
        greenlet.kill()
        growths = watch.growths_mb()
        for name, growth_mb in growths.items():
            print(f"memory of {name}: {growth_mb:+.1f} MB")
        if not growths:
            print("the run was too short to judge the growth of memory")
        if max(growths.values(), default=math.inf) > options.max_growth_mb:
            environment.process_exit_code = 1
        if options.csv_prefix:
            watch.write_csv(Path(f"{options.csv_prefix}_memory.csv"))


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """Connect; Locust stops if the service does not answer or lacks a part of the mix."""
    if isinstance(environment.runner, MasterRunner):
        return
    session = Session(environment)
    try:
        session.open()
        DiptychUser.session = session
    except (OSError, MixError) as error:
        environment.process_exit_code = 1
        raise StopTest(f"{environment.host}: {error}") from error


@events.test_stop.add_listener
def stop(**_: Any) -> None:
    """Wait for the last answers; there is no session in a master or after a failed start."""
    if hasattr(DiptychUser, "session"):
        DiptychUser.session.close()
