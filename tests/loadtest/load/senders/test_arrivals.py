"""The open loop: due times are a Poisson process, and nothing that a server does moves them."""

import asyncio
import itertools
import random
import statistics
import time
from collections import Counter

import gevent
import gevent.event
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from loadtest.load.senders.arrivals import PoissonClock, RequestPool, send_and_wait, send_when_due
from loadtest.load.senders.rest import RestSender
from tests.support.load_samples import question
from tests.support.served_app import serving_app

RATE_PER_S = 40.0


def due_times(num: int, rate_per_s: float = RATE_PER_S, seed: int = 0) -> list[float]:
    clock = PoissonClock(rate_per_s, random.Random(seed), 0.0)
    return [clock.next_due_s() for _ in range(num)]


def no_drop(_request: int, _due_s: float) -> None:
    raise AssertionError("a request was dropped")


def test_gaps_have_mean_and_variance_of_an_exponential_distribution() -> None:
    gaps = [later - earlier for earlier, later in itertools.pairwise(due_times(20_000))]
    # The standard errors of 20,000 gaps are 0.7 % of the mean and 2 % of the variance: three of
    # each.
    assert statistics.fmean(gaps) == pytest.approx(1 / RATE_PER_S, rel=0.021)
    assert statistics.variance(gaps) == pytest.approx(1 / RATE_PER_S**2, rel=0.06)


def test_many_clients_together_are_a_poisson_process() -> None:
    times = [due_s for seed in range(80) for due_s in due_times(250, RATE_PER_S / 80, seed)]
    seconds = range(1, 300)  # well before the clients' last
    per_second = Counter(int(due_s) for due_s in times)
    counts = [per_second[second] for second in seconds]
    assert min(due_times(250, RATE_PER_S / 80, seed)[-1] for seed in range(80)) > 300 * 0.9
    assert statistics.fmean(counts[:200]) == pytest.approx(RATE_PER_S, rel=0.04)
    # standard error 10 %
    assert statistics.variance(counts[:200]) == pytest.approx(RATE_PER_S, rel=0.3)


def test_a_slow_server_does_not_slow_the_clock() -> None:
    gate = asyncio.Event()
    started = list[tuple[float, float]]()
    answered_s = list[float]()

    async def answer(_request: Request) -> JSONResponse:
        await gate.wait()
        return JSONResponse({"error": {"code": "overloaded"}}, 429)

    with serving_app(Starlette(routes=[Route("/v1/predict", answer, methods=["POST"])])) as served:
        sender = RestSender(served.url, 64, None)

        def send(number: int, due_s: float) -> None:
            started.append((due_s, time.monotonic()))
            assert sender.predict(question()).status == "overloaded", number
            answered_s.append(time.monotonic() - due_s)

        pool = RequestPool(send, no_drop, 64)
        clock = PoissonClock(100.0, random.Random(3), time.monotonic())
        numbers = iter(range(30))
        with gevent.Timeout(10):
            for _ in range(30):
                send_when_due(clock, lambda: next(numbers), pool)
            while len(started) < 30:
                gevent.sleep(0.001)
        assert not answered_s  # all were sent before the first answer
        served.loop.call_soon_threadsafe(gate.set)
        pool.finish(10)
        sender.close()
    assert pool.failure is None
    assert len(answered_s) == 30
    assert all(sent_s >= due_s for due_s, sent_s in started)
    assert max(answered_s) > started[-1][0] - started[0][0]  # latency counts from the due time


def test_requests_beyond_the_limit_are_dropped_and_counted() -> None:
    gate = gevent.event.Event()
    sent = list[int]()
    dropped = list[int]()

    def send(number: int, _due_s: float) -> None:
        sent.append(number)
        gate.wait()

    pool = RequestPool(send, lambda number, _due_s: dropped.append(number), 3)
    for number in range(5):
        pool.start(number, 0.0)
    gevent.sleep(0)
    gate.set()
    pool.finish(1)
    assert (sent, dropped) == ([0, 1, 2], [3, 4])


def test_a_client_of_the_closed_loop_waits_for_its_answer() -> None:
    num_now = 0
    max_now = 0

    def send(_number: int, _due_s: float) -> None:
        nonlocal num_now, max_now
        num_now, max_now = num_now + 1, max(max_now, num_now + 1)
        gevent.sleep(0.01)
        num_now -= 1

    pool = RequestPool(send, no_drop, 8)
    for _ in range(4):
        send_and_wait(lambda: 1, pool)
        assert num_now == 0
    assert max_now == 1


def test_a_failure_of_the_sender_is_kept() -> None:
    def send(number: int, _due_s: float) -> None:
        raise ZeroDivisionError(number)

    pool = RequestPool(send, no_drop, 8)
    pool.start(1, 0.0)
    pool.finish(1)
    gevent.sleep(0)
    assert isinstance(pool.failure, ZeroDivisionError)
