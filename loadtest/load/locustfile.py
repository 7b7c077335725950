"""Entry point for Locust: `locust -f loadtest/load/locustfile.py --host URL`, with --headless or
with its page.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from locust import LoadTestShape, events
from locust.env import Environment

from loadtest.load.load_run import LoadRun
from loadtest.load.traffic.traffic_mix import MixError
from loadtest.load.users import USERS, CompareUser, GrpcUser, RestUser, StreamUser

# found by Locust in this module
__all__ = ["CompareUser", "GrpcUser", "PlanShape", "RestUser", "StreamUser"]

_HERE = Path(__file__).parent
_MAX_SPAWNED_PER_S = 100  # above that Locust warns
_DRAINED_S = 4.0  # above a worker's report interval, after which it may report more requests


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; Locust's page shows them too, and a master sends them to its workers."""
    add = parser.add_argument_group("Diptych's load test").add_argument
    scenario = "saturation: steps to the saturation point; manual: Locust's --users and --run-time"
    add("--scenario", choices=("saturation", "manual"), default="saturation", help=scenario)
    arrivals = "open: half a request/s for each user; closed: each waits for its answers"
    add("--arrivals", choices=("open", "closed"), default="open", help=arrivals)
    first = "requests/s (open) or users (closed) of the first step"
    add("--first-level", type=float, default=4.0, help=first)
    seconds = "maximum duration of all steps, without the last answers"
    add("--seconds", type=float, default=320.0, help=seconds)
    mix = "traffic mix; a path on every worker"
    add("--mix", default=str(_HERE / "traffic_mix.yaml"), help=mix)
    add("--grpc", default="", metavar="HOST:PORT", help="default: port 3001 of --host")
    results = str(_HERE.parent / "results" / "load")
    add("--results", default=results, metavar="FOLDER", help="of the report")


class PlanShape(LoadTestShape):
    """Converts a plan's levels to users, and waits at its end for the last answers."""

    use_common_options = True  # Locust warns otherwise that --users is ignored
    run: LoadRun

    def reset_time(self) -> None:
        """Start a new plan; Locust calls it at the start of a test."""
        super().reset_time()
        self.plan = self.run.new_plan()
        self._end_s: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Return the number of users and their starts per second; None ends the test."""
        level = self.plan.level(time.time())
        if level is not None:
            num_users = max(1, round(level / self.run.level_per_user))
            return num_users, min(num_users, _MAX_SPAWNED_PER_S)
        if self._end_s is None:
            self._end_s = self.get_run_time()
        waited_s = self.get_run_time() - self._end_s
        is_drained = waited_s > _DRAINED_S and self.run.num_in_flight == 0
        return None if is_drained or waited_s > self.run.last_answer_s else (0, _MAX_SPAWNED_PER_S)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Set the users' weights and the shape's plan, or exit if mix or service are unusable."""
    run = LoadRun(environment)
    try:
        run.check()
    except (OSError, MixError) as error:
        sys.exit(f"{environment.host}: {error}")
    for api, weight in run.mix.apis.items():
        USERS[api].weight = weight
    environment.user_classes = [USERS[api] for api, weight in run.mix.apis.items() if weight]
    run.listen()
    options: Any = environment.parsed_options
    if options.scenario == "manual":
        environment.shape_class = None
    elif isinstance(environment.shape_class, PlanShape):
        environment.shape_class.run = run
