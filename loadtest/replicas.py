"""How throughput grows with replicas, and what one gateway carries: a real gateway over simulated runners.

    python -m loadtest.replicas [--counts 1,2,4,8,16,32] [--encode-ms 400] [--cycles 8] [--rounds 3]

Encoders and decoders are simulated ones of a fixed service time (loadtest/simulated_runners.py), so that their number
and the gateway alone decide. Clients ask about another image each time, in a closed loop with more requests than the
replicas work on. The model must be exported (make export): the gateway reads its manifest. A table goes to stdout, all
rounds into replicas.json.

    growth   replicas that take 400 ms an image, 2.5 images a second each: throughput, against that of one, times N
    limit    replicas that take no time: what one gateway worker carries, and what of a core it takes
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from loadtest.markdown import percent, shown, table
from loadtest.servers import NUM_CORES, ROOT, Launch, cpu_s, free_port, running
from loadtest.soak_traffic import new_image

MODEL = "florence-2-mini"
COUNTS = (1, 2, 4, 8, 16, 32)
SLOTS = 4  # of a decoder
_CLIENTS_EACH = 2 * SLOTS  # more than a pair of replicas works on
_NUM_IMAGES = 512  # more than are at work at one time: none finds its image in the making
_LIMIT_REPLICAS, _LIMIT_CLIENTS = 4, 24
_TIMEOUT_S = 120
_RESULTS = ROOT / "loadtest" / "results"


@dataclass(frozen=True, slots=True)
class Round:
    """What was measured in one round."""

    requests_per_s: float
    cpu_s_per_s: float  # of the gateway and its supervisor; 1 is a core
    num_answered: int


@dataclass(frozen=True, slots=True)
class Point:
    """The rounds at one number of replicas."""

    num_replicas: int  # of encoders, and of decoders
    rounds: tuple[Round, ...]

    @property
    def requests_per_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(one.requests_per_s for one in self.rounds)

    @property
    def cpu_s_per_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(one.cpu_s_per_s for one in self.rounds)


@dataclass(frozen=True, slots=True)
class Plan:
    """How fast replicas are, and how long each point is measured."""

    encode_ms: float  # an encoder answers one image in that time, a decoder `SLOTS` in as many times that
    num_cycles: int  # of a round; in one every slot answers once, so that none is half counted
    num_rounds: int

    @property
    def write_ms(self) -> float:
        """Service time of a decoder."""
        return SLOTS * self.encode_ms

    @property
    def round_s(self) -> float:
        """Seconds of a round."""
        return self.num_cycles * self.write_ms / 1000


def growth(counts: Sequence[int], plan: Plan) -> list[Point]:
    """Measure the throughput at each number of replicas of a fixed service time."""
    with simulated(max(counts), plan.encode_ms, plan.write_ms) as ports:
        return [_point(ports, count, _CLIENTS_EACH * count, plan) for count in counts]


def limit(plan: Plan) -> Point:
    """Measure what a gateway carries where its runners take no time."""
    with simulated(_LIMIT_REPLICAS, 0, 0) as ports:
        return _point(ports, _LIMIT_REPLICAS, _LIMIT_CLIENTS, plan)


def efficiency(point: Point, first: Point) -> float:
    """Return the throughput divided by what it would be if it grew from that of `first` as the replicas do."""
    return point.requests_per_s / first.requests_per_s * first.num_replicas / point.num_replicas


@dataclass(frozen=True, slots=True)
class Ports:
    """Where simulated replicas listen."""

    encoders: tuple[int, ...]
    decoders: tuple[int, ...]


@contextmanager
def simulated(count: int, encode_ms: float, write_ms: float) -> Iterator[Ports]:
    """Run that many simulated encoders and decoders."""
    free = [free_port() for _ in range(2 * count)]
    ports = Ports(tuple(free[:count]), tuple(free[count:]))
    options = {
        "--encoders": ",".join(map(str, ports.encoders)),
        "--decoders": ",".join(map(str, ports.decoders)),
        "--encode-ms": str(encode_ms),
        "--write-ms": str(write_ms),
        "--slots": str(SLOTS),
    }
    command = (sys.executable, "-m", "loadtest.simulated_runners", *itertools.chain(*options.items()))
    with running(Launch(command, ports.decoders[-1], "/readyz"), ROOT / "build" / "simulated_runners.log"):
        yield ports


def _gateway(ports: Ports, count: int) -> Launch:
    """Return how a gateway over the first `count` replicas of each part is started."""
    port = free_port()
    environment = {
        "DIPTYCH_MODELS": MODEL,
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": "0",
        "DIPTYCH_ENCODER_URLS": _urls(ports.encoders[:count]),
        "DIPTYCH_DECODER_URLS": _urls(ports.decoders[:count]),
        "DIPTYCH_DECODER_MAX_BATCH_SIZE": str(SLOTS),
        "DIPTYCH_MAX_PENDING_REQUESTS": "10000",
        "DIPTYCH_MAX_WAITING_TOKENS": "1000000000",
        "DIPTYCH_REQUEST_TIMEOUT_S": str(_TIMEOUT_S),
        "DIPTYCH_VISION_CACHE_MB": "0",
    }
    return Launch((sys.executable, "-m", "service", "gateway"), port, "/readyz", environment)


def _urls(ports: Sequence[int]) -> str:
    return ",".join(f"{MODEL}=http://127.0.0.1:{port}" for port in ports)


def _point(ports: Ports, count: int, num_clients: int, plan: Plan) -> Point:
    launch = _gateway(ports, count)
    with running(launch, ROOT / "build" / "gateway.log") as process_id:
        rounds = asyncio.run(_rounds(launch.url, process_id, num_clients, plan))
    return Point(count, tuple(rounds))


async def _rounds(url: str, process_id: int, num_clients: int, plan: Plan) -> list[Round]:
    """Let clients ask all the time; begin to count when each has been answered once."""
    ended_s: list[float] = []
    images = itertools.cycle([new_image() for _ in range(_NUM_IMAGES)])
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(_TIMEOUT_S)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, raise_for_status=True) as http:
        clients = [asyncio.create_task(_client(http, images, ended_s)) for _ in range(num_clients)]
        try:
            while len(ended_s) < num_clients:
                await _no_failure(clients, 0.05)
            return [await _round(clients, ended_s, process_id, plan.round_s) for _ in range(plan.num_rounds)]
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def _client(http: aiohttp.ClientSession, images: Iterator[bytes], ended_s: list[float]) -> None:
    while True:
        form = aiohttp.FormData({"task": "captioning", "model": MODEL})
        form.add_field("image", next(images), filename="image.jpg", content_type="image/jpeg")
        async with http.post("/v1/predict", data=form) as response:
            await response.read()
        ended_s.append(time.monotonic())


async def _no_failure(clients: Sequence[asyncio.Task[None]], seconds: float) -> None:
    """Wait; raise what a client ended with."""
    ended, _ = await asyncio.wait(clients, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
    for client in ended:
        client.result()


async def _round(clients: Sequence[asyncio.Task[None]], ended_s: list[float], process_id: int, seconds: float) -> Round:
    first, start_s, start_cpu_s = len(ended_s), time.monotonic(), cpu_s(process_id)
    await _no_failure(clients, seconds)
    elapsed_s, num_answered = time.monotonic() - start_s, len(ended_s) - first
    return Round(num_answered / elapsed_s, (cpu_s(process_id) - start_cpu_s) / elapsed_s, num_answered)


def report(points: Sequence[Point], most: Point) -> str:
    """Return the table and the limit."""
    rows = [
        [str(p.num_replicas), shown(p.requests_per_s), percent(efficiency(p, points[0])), percent(p.cpu_s_per_s)]
        for p in points
    ]
    header = ["encoders, and decoders", "requests/s", "of linear", "gateway, of a core"]
    per_core = most.requests_per_s / most.cpu_s_per_s
    return (
        f"{table(header, rows)}\n\n"
        f"One gateway over runners that take no time: {shown(most.requests_per_s)} requests/s at "
        f"{percent(most.cpu_s_per_s)} of a core, so {shown(per_core)} with a core of its own."
    )


def recorded(path: Path) -> tuple[list[Point], Point]:
    """Return what a file of results holds: growth, and limit."""
    found = json.loads(path.read_text(encoding="utf-8"))
    *points, most = (
        Point(each["num_replicas"], tuple(Round(**one) for one in each["rounds"]))
        for each in (*found["growth"], found["limit"])
    )
    return points, most


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the rounds."""
    parser = argparse.ArgumentParser("python -m loadtest.replicas", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", type=_counts, default=COUNTS, metavar="N,…", help="default 1,2,4,8,16,32")
    parser.add_argument("--encode-ms", type=float, default=400, metavar="MS", help="default %(default)s")
    parser.add_argument("--cycles", type=int, default=8, metavar="N", help="of a round; default %(default)s")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default %(default)s")
    parser.add_argument("--results", type=Path, default=_RESULTS, metavar="FOLDER", help="default %(default)s")
    given = parser.parse_args(arguments)
    plan = Plan(given.encode_ms, given.cycles, given.rounds)
    points, most = growth(given.counts, plan), limit(plan)
    print(report(points, most))
    given.results.mkdir(parents=True, exist_ok=True)
    found = {"cores": NUM_CORES, "machine": os.uname().machine, "growth": points, "limit": most}
    text = json.dumps(found, default=asdict, indent=1)
    (given.results / "replicas.json").write_text(text + "\n", encoding="utf-8")


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


if __name__ == "__main__":
    main()
