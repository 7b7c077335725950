"""What Locust loads: `locust -f loadtest/load/locustfile.py --host URL`, with --headless or with a page."""

import sys
from typing import Any

from locust import events
from locust.env import Environment

from loadtest.load.load_run import LoadRun
from loadtest.load.options import add_options, options_of
from loadtest.load.shape import PlanShape
from loadtest.load.traffic_mix import MixError
from loadtest.load.users import USERS, CompareUser, GrpcUser, RestUser, StreamUser

__all__ = ["CompareUser", "GrpcUser", "PlanShape", "RestUser", "StreamUser"]  # where Locust looks for them

events.init_command_line_parser.add_listener(add_options)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Give users their weights and the shape its plan; end with a message where mix or service are wrong."""
    options, run = options_of(environment.parsed_options), LoadRun(environment)
    try:
        run.check()
    except (OSError, MixError) as error:
        sys.exit(f"{environment.host}: {error}")
    for api, weight in run.mix.apis.items():
        USERS[api].weight = weight
    environment.user_classes = [USERS[api] for api, weight in run.mix.apis.items() if weight]
    run.listen()
    shape = environment.shape_class
    if options.scenario == "manual":
        environment.shape_class = None
    elif isinstance(shape, PlanShape):
        shape.follow(run)
