"""Locust's users, one class for each way of asking; an open-loop user is a Poisson process of RATE_PER_USER."""

import time
from typing import ClassVar

from locust import User, task
from locust.env import Environment

from loadtest.load.arrivals import PoissonClock, ask_and_wait, ask_when_due
from loadtest.load.questions import Question
from loadtest.load.session import Session
from loadtest.load.traffic_mix import Api

RATE_PER_USER = 0.5  # requests a second, in the open loop


class DiptychUser(User):
    """Asks over one interface, again and again."""

    abstract = True
    api: ClassVar[Api]
    session: ClassVar[Session]  # of this process; set when a test starts
    is_open_loop: ClassVar[bool] = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._clock = PoissonClock(RATE_PER_USER, self.session.rng, time.monotonic())

    @task
    def ask(self) -> None:
        """Send one request."""
        if self.is_open_loop:
            ask_when_due(self._clock, self._question, self.session.outstanding)
        else:
            ask_and_wait(self._question, self.session.outstanding)

    def _question(self) -> Question:
        return self.session.question(self.api)


class RestUser(DiptychUser):
    """Asks one model over REST."""

    api = "rest"


class GrpcUser(DiptychUser):
    """Asks one model over gRPC."""

    api = "grpc"


class StreamUser(DiptychUser):
    """Asks one model over REST and reads the answer as it is written."""

    api = "stream"


class CompareUser(DiptychUser):
    """Asks all models over REST."""

    api = "compare"


USERS: dict[Api, type[DiptychUser]] = {
    "rest": RestUser,
    "grpc": GrpcUser,
    "stream": StreamUser,
    "compare": CompareUser,
}
