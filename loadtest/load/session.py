"""What the users of one process share: connections, questions, and where samples go."""

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc.experimental.gevent
from locust.env import Environment

from loadtest.load.arrivals import Outstanding
from loadtest.load.grpc_api import GrpcSender
from loadtest.load.offer import offer_of
from loadtest.load.questions import Question, Questions
from loadtest.load.recorder import Recorder
from loadtest.load.replies import OK, Checker, Reply
from loadtest.load.rest import GRACE_S, RestSender
from loadtest.load.samples import NOT_SENT, Sample
from loadtest.load.traffic_mix import Api, TrafficMix

grpc.experimental.gevent.init_gevent()


@dataclass(frozen=True, slots=True)
class Target:
    """The service that is asked."""

    url: str
    grpc_address: str
    api_key: str | None


class Session:
    """Asks one service until it is closed."""

    def __init__(
        self, target: Target, mix: TrafficMix, recorder: Recorder, environment: Environment, max_outstanding: int
    ) -> None:
        self._mix = mix
        self._recorder = recorder
        self._request_event = environment.events.request
        self._rest = RestSender(target.url, max_outstanding, target.api_key)
        self._grpc = GrpcSender(target.grpc_address, target.url.startswith("https:"), target.api_key)
        self._send_over: dict[Api, Callable[[Question], Reply]] = {
            "rest": self._rest.predict,
            "grpc": self._grpc.predict,
            "stream": self._rest.stream,
            "compare": self._rest.compare,
        }
        self._checker = Checker(mix.answers_repeat)
        self._questions: Questions
        self.rng = random.Random()  # not seeded: every worker must ask something else
        self.outstanding = Outstanding(self._send, self._drop, max_outstanding)

    def open(self) -> None:
        """Learn what the service offers; raise `OSError` where it is not there, `MixError` for a mix that it lacks."""
        offer = offer_of(self._mix, json.loads(self._rest.get("/v1/tasks")))
        self._questions = Questions(self._mix, offer, self.rng)
        if self._mix.apis.get("grpc"):
            self._grpc.connect()

    def question(self, api: Api) -> Question:
        """Return the next request."""
        return self._questions.next(api)

    def close(self) -> None:
        """Wait for what is under way, then close all connections; raise what the sender itself has failed with."""
        self.outstanding.finish(self._mix.longest_deadline_s + 2 * GRACE_S)
        self._rest.close()
        self._grpc.close()
        if self.outstanding.failure is not None:
            raise self.outstanding.failure

    def _send(self, question: Question, due_s: float) -> None:
        self._recorder.due_s.append(_unix_s(due_s))
        lag_s = time.monotonic() - due_s
        reply = self._send_over[question.api](question)
        first_token_s = None if reply.first_token_s is None else reply.first_token_s - due_s
        status = self._checker.status(question, reply)
        self._record(_sample(question, due_s, lag_s, time.monotonic() - due_s, first_token_s, status))

    def _drop(self, question: Question, due_s: float) -> None:
        self._recorder.due_s.append(_unix_s(due_s))
        self._record(_sample(question, due_s, 0.0, 0.0, None, NOT_SENT))

    def _record(self, sample: Sample) -> None:
        """Keep a sample and tell Locust, whose page and tables show it.

        What was refused has a row of its own there: its times would falsify those of answers.
        """
        self._recorder.samples.append(sample)
        verdict = sample.verdict(self._mix.slos_ms)
        is_answer = sample.status == OK
        self._request_event.fire(
            request_type=sample.api,
            name=sample.task if is_answer else f"{sample.task}: {sample.status}",
            response_time=sample.latency_s * 1000,
            response_length=0,
            context={},
            exception=RuntimeError(sample.status) if verdict == "error" else None,
        )


def _sample(
    question: Question, due_s: float, lag_s: float, latency_s: float, first_token_s: float | None, status: str
) -> Sample:
    return Sample(question.api, question.task, question.model, _unix_s(due_s), lag_s, latency_s, first_token_s, status)


def _unix_s(monotonic_s: float) -> float:
    return time.time() - time.monotonic() + monotonic_s
