"""State shared by the users of one process: connections, questions, samples."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc.experimental.gevent
from locust.env import Environment

from loadtest.load.samples import NOT_SENT, Recorder, Sample
from loadtest.load.senders.arrivals import RequestPool
from loadtest.load.senders.grpc_sender import GrpcSender
from loadtest.load.senders.replies import OK, Checker, Reply
from loadtest.load.senders.rest import GRACE_S, RestSender
from loadtest.load.traffic.questions import Question, Questions
from loadtest.load.traffic.traffic_mix import Api, TrafficMix

grpc.experimental.gevent.init_gevent()

_MAX_REQUESTS = 256  # maximum in flight; others are not sent


@dataclass(frozen=True, slots=True)
class Target:
    """The service under load."""

    url: str
    grpc_address: str
    api_key: str | None


class Session:
    """Sends questions to one service until it is closed."""

    def __init__(
        self,
        target: Target,
        mix: TrafficMix,
        recorder: Recorder,
        environment: Environment,
    ) -> None:
        self._mix = mix
        self._recorder = recorder
        self._request_event = environment.events.request
        self._rest = RestSender(target.url, _MAX_REQUESTS, target.api_key)
        self._grpc = GrpcSender(
            target.grpc_address, target.url.startswith("https:"), target.api_key
        )
        self._send_over: dict[Api, Callable[[Question], Reply]] = {
            "rest": self._rest.predict,
            "grpc": self._grpc.predict,
            "stream": self._rest.stream,
            "compare": self._rest.compare,
        }
        self._checker = Checker(mix.answers_repeat)
        self._questions: Questions
        self.rng = random.Random()  # not seeded: workers must not send the same requests
        self.pool = RequestPool(self._send, self._drop, _MAX_REQUESTS)

    def open(self) -> None:
        """Connect.

        Raise `OSError` if the service does not answer, `MixError` if it lacks a part of the
        mix.
        """
        self._questions = Questions(self._mix, json.loads(self._rest.get("/v1/tasks")), self.rng)
        if self._mix.apis.get("grpc"):
            self._grpc.connect()

    def question(self, api: Api) -> Question:
        return self._questions.next(api)

    def close(self) -> None:
        """Wait for the requests in flight, then close all connections.

        Raise a failure of the sender itself.
        """
        self.pool.finish(self._mix.longest_deadline_s + 2 * GRACE_S)
        self._rest.close()
        self._grpc.close()
        if self.pool.failure is not None:
            raise self.pool.failure

    def _send(self, question: Question, due_s: float) -> None:
        unix_s = self._due(due_s)
        lag_s = time.monotonic() - due_s
        reply = self._send_over[question.api](question)
        latency_s = time.monotonic() - due_s
        first_token_s = None if reply.first_token_s is None else reply.first_token_s - due_s
        status = self._checker.status(question, reply)
        self._record(question, unix_s, lag_s, latency_s, first_token_s, status)

    def _drop(self, question: Question, due_s: float) -> None:
        self._record(question, self._due(due_s), 0.0, 0.0, None, NOT_SENT)

    def _due(self, due_s: float) -> float:
        """Count a request; return its due time as Unix time."""
        unix_s = time.time() - time.monotonic() + due_s
        self._recorder.due_s.append(unix_s)
        return unix_s

    def _record(
        self,
        question: Question,
        due_s: float,
        lag_s: float,
        latency_s: float,
        first_token_s: float | None,
        status: str,
    ) -> None:
        """Keep a sample, and report it to Locust for its page and tables.

        Each status has a row of its own there, because the times of refusals would distort those of
        answers.
        """
        sample = Sample(
            question.api,
            question.task,
            question.model,
            due_s,
            lag_s,
            latency_s,
            first_token_s,
            status,
        )
        self._recorder.samples.append(sample)
        is_error = sample.verdict(self._mix.slos_ms) == "error"
        self._request_event.fire(
            request_type=sample.api,
            name=sample.task if sample.status == OK else f"{sample.task}: {sample.status}",
            response_time=sample.latency_s * 1000,
            response_length=0,
            context={},
            exception=RuntimeError(sample.status) if is_error else None,
        )
