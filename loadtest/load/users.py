"""Locust's users, one class for each interface; in the open loop each is a Poisson process of
RATE_PER_USER.
"""

import time
from typing import ClassVar

from locust import User, task
from locust.env import Environment

from loadtest.load.senders.arrivals import PoissonClock, send_and_wait, send_when_due
from loadtest.load.session import Session
from loadtest.load.traffic.questions import Question
from loadtest.load.traffic.traffic_mix import Api

RATE_PER_USER = 0.5  # requests per second, in the open loop


class DiptychUser(User):
    """Sends one request after the other over one interface."""

    abstract = True
    api: ClassVar[Api]
    session: ClassVar[Session]  # one per process; set when a test starts
    is_open_loop: ClassVar[bool] = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._clock = PoissonClock(RATE_PER_USER, self.session.rng, time.monotonic())

    @task
    def send(self) -> None:
        if self.is_open_loop:
            send_when_due(self._clock, self._question, self.session.pool)
        else:
            send_and_wait(self._question, self.session.pool)

    def _question(self) -> Question:
        return self.session.question(self.api)


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


USERS: dict[Api, type[DiptychUser]] = {
    user.api: user for user in (RestUser, GrpcUser, StreamUser, CompareUser)
}
