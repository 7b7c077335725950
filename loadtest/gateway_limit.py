"""Requests per second of gateways over a runner that takes no time: `python -m
loadtest.gateway_limit [--workers N]`.

Clients in a closed loop send a different image each time; loadtest/simulated_runner.py answers.
What remains is the gateway's work: reading the form, decoding, resizing and sending the image,
parsing and rendering the answer. The model must be exported (`make export`), because the gateway
reads its manifest.

Where clients and runner take cores that the gateways could use, requests per second do not double
with the processes.
"""

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import aiohttp

from loadtest.figures import percent, shown
from loadtest.processes import ROOT, Launch, cpu_s_by_process, free_port, running
from loadtest.soak_traffic import new_image

MODEL = "florence-2-mini"
# more images than requests in flight, so that no two share an encoding
_NUM_CLIENTS = 24
_NUM_IMAGES = 512
_WARM_UP_S = 2.0
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Round:
    """One round of the measurement."""

    requests_per_s: float
    cpu_s_per_s: float  # gateways and their supervisor; 1 is a core
    shares: tuple[float, ...]  # each gateway's part of it, the largest first

    @property
    def cpu_s_per_request(self) -> float:
        return self.cpu_s_per_s / self.requests_per_s


def measure(num_workers: int, num_rounds: int, round_s: float) -> list[Round]:
    """Start runner and gateways, and measure."""
    runner_port = free_port()
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_GATEWAY_WORKERS": str(num_workers),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_RUNNER_URLS": f"{MODEL}=http://127.0.0.1:{runner_port}",
        "DIPTYCH_MAX_PENDING_REQUESTS": "10000",
        "DIPTYCH_MAX_WAITING_TOKENS": "1000000000",
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
    }
    runner = Launch(
        (sys.executable, "-m", "loadtest.simulated_runner", str(runner_port)),
        runner_port,
        "/readyz",
    )
    gateway = Launch((sys.executable, "-m", "service", "gateway"), port, "/readyz", environment)
    with (
        running(runner, ROOT / "build" / "simulated_runner.log"),
        running(gateway, ROOT / "build" / "gateway.log") as process_id,
    ):
        return asyncio.run(_rounds(gateway.url, process_id, num_rounds, round_s))


async def _rounds(url: str, process_id: int, num_rounds: int, round_s: float) -> list[Round]:
    ended_s: list[float] = []
    images = itertools.cycle([new_image() for _ in range(_NUM_IMAGES)])
    numbers = itertools.count()
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(_TIMEOUT_S)
    async with aiohttp.ClientSession(
        url, connector=connector, timeout=timeout, raise_for_status=True
    ) as http:

        async def send() -> None:
            while True:
                form = aiohttp.FormData({"task": "captioning", "model": MODEL})
                # a number behind its end makes the image new to the gateway
                image = next(images) + b"%d" % next(numbers)
                form.add_field("image", image, filename="a.jpg", content_type="image/jpeg")
                async with http.post("/v1/predict", data=form) as response:
                    await response.read()
                ended_s.append(time.monotonic())

        clients = [asyncio.create_task(send()) for _ in range(_NUM_CLIENTS)]
        try:
            await _run_for(clients, _WARM_UP_S)
            rounds = []
            for _ in range(num_rounds):
                first = len(ended_s)
                start_s = time.monotonic()
                before_s = cpu_s_by_process(process_id)
                await _run_for(clients, round_s)
                elapsed_s = time.monotonic() - start_s
                after_s = cpu_s_by_process(process_id)
                used_s = {one: after_s[one] - before_s.get(one, 0.0) for one in after_s}
                total_s = sum(used_s.values())
                gateways_s = [used_s[one] for one in used_s if one != process_id]
                shares = sorted((each_s / total_s for each_s in gateways_s), reverse=True)
                num_ended = len(ended_s) - first
                rounds.append(Round(num_ended / elapsed_s, total_s / elapsed_s, tuple(shares)))
            return rounds
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def _run_for(clients: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait for `seconds` while the clients run; raise the first error of one."""
    ended, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for client in ended:
        client.result()


def report(num_workers: int, rounds: Sequence[Round]) -> str:
    """Return the medians of the rounds, in one line."""
    requests_per_s = statistics.median(one.requests_per_s for one in rounds)
    cores = statistics.median(one.cpu_s_per_s for one in rounds)
    cpu_ms = statistics.median(one.cpu_s_per_request for one in rounds) * 1000
    by_process = zip(*(one.shares for one in rounds), strict=True)
    shares = [percent(statistics.median(each)) for each in by_process]
    return (
        f"gateway processes: {num_workers}; {shown(requests_per_s)} requests/s at {percent(cores)}"
        f" of a core, {cpu_ms:.2f} ms a request; shares of the processes: {', '.join(shares)}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m loadtest.gateway_limit", description=summary)
    add = parser.add_argument
    workers = "gateway processes; default %(default)s"
    add("--workers", type=int, default=1, metavar="N", help=workers)
    add("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    add("--seconds", type=float, default=8, metavar="S", help="of a round; default %(default)s")
    given = parser.parse_args(arguments)
    print(report(given.workers, measure(given.workers, given.rounds, given.seconds)))


if __name__ == "__main__":
    main()
