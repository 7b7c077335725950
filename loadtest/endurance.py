"""A hundred thousand requests or images: what grows, and what is lost when processes are killed.

`service` starts the service with both embedded models and six API keys, and sends requests over
every interface. A runner and a gateway are killed six times. `offline` runs
`python -m offline` over images of which one of 500 is broken, kills its worker once, and ends and
resumes the run once. A growth is the slope of a line through the samples of a process's longest
life, without its warm-up. The exit status is 1 if a check failed.
"""

import argparse
import hashlib
import json
import math
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil
from matplotlib import pyplot

from loadtest.figures import processor_name, table
from loadtest.processes import ROOT, Launch, free_port, process_tree, running
from loadtest.senders import CONNECTION_FAILED, LEFT, OK, Checker, GrpcSender, Reply, RestSender
from loadtest.traffic import Question, Questions, draw_scenes, jpeg_of, read_mix

PER = 10_000  # requests or images
# Growth that is allowed; counts are whole, so half of one is none.
LIMITS = {
    "service": {"anonymous MB": 1.0, "files": 0.5, "threads": 0.5, "series": 0.5, "shm MB": 0.5},
    "offline": {"anonymous MB of all": 5.0},
}
MODELS = ("florence-2-mini", "paligemma-mini")
_KEYS = [f"key-{number}" for number in range(6)]
_NUM_CLIENTS = 12
_NUM_KILLS = 6
_DISTURBED_S = 15.0  # after a kill; a process is ready again within 10 s
_NUM_SCENES = 1000
_BROKEN_EVERY = 500
_SHARD_SIZE = 250

Amounts = dict[str, float]
Life = list[tuple[int, Amounts]]  # requests or images done, and what the process used then


@dataclass(slots=True)
class Watch:
    """Samples of the use of processes, with the number of requests or images done."""

    every_s: float
    read: Callable[[], tuple[int, dict[str, Amounts]]]
    samples: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        is_over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(self._run, is_over, time.monotonic())
            try:
                yield
            finally:
                is_over.set()
        job.result()

    def _run(self, is_over: threading.Event, start_s: float) -> None:
        while not is_over.wait(self.every_s):
            done, use = self.read()
            at_s = round(time.monotonic() - start_s, 1)
            self.samples.append({"at_s": at_s, "done": done, "use": use})

    def longest_lives(self, warm_up: int) -> dict[str, Life]:
        """Return samples after the warm-up by name: a process is "name#id"."""
        lives: dict[str, Life] = {}
        for sample in self.samples:
            for process, amounts in sample["use"].items():
                lives.setdefault(process, []).append((sample["done"], amounts))
        longest: dict[str, Life] = {}
        for process, life in lives.items():
            warm = [(done, amounts) for done, amounts in life if done >= life[0][0] + warm_up]
            name = process.partition("#")[0]
            if len(warm) > 4 and _requests_of(warm) > _requests_of(longest.get(name, [])):
                longest[name] = warm
        return longest


def _requests_of(life: Life) -> int:
    return life[-1][0] - life[0][0] if life else 0


@dataclass(frozen=True, slots=True)
class Run:
    """The outcome of a run."""

    watch: Watch
    counts: dict[str, Any]
    faults: list[str]


def growth(life: Life, quantity: str) -> float:
    """Return the slope of a quantity, per 10,000 requests or images."""
    done = [count / PER for count, _ in life]
    return statistics.linear_regression(done, [amounts[quantity] for _, amounts in life]).slope


def use_of(processes: list[psutil.Process]) -> dict[str, Amounts]:
    """Return memory, open files and threads of each process.

    Pages that neighbours share count in part in the PSS, which grows when these end.
    """
    use = {}
    for process in processes:
        with suppress(psutil.Error):
            words = " ".join(process.cmdline()).replace("\0", " ").split()
            if not words:
                continue  # it has ended
            name = words[0].rpartition("/")[2].partition("(")[0]
            for option in ("-m", "--service-name"):
                if option in words:
                    name = words[words.index(option) + 1]
            memory = process.memory_full_info()
            use[f"{name}#{process.pid}"] = {
                "PSS MB": round(memory.pss / 1e6, 2),
                "anonymous MB": round((memory.rss - memory.shared) / 1e6, 2),
                "files": float(process.num_fds()),
                "threads": float(process.num_threads()),
            }
    return use


@dataclass(slots=True)
class Outcomes:
    """Counts of replies, and those that should not be."""

    disturbances: list[float] = field(default_factory=list)  # time.monotonic() of kills
    replies: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, way: str, reply: Reply, status: str, start_s: float) -> None:
        end_s = time.monotonic()
        is_disturbed = any(
            kill_s <= end_s and start_s <= kill_s + _DISTURBED_S for kill_s in self.disturbances
        )
        with self._lock:
            self.replies[f"{way}: {status}" + " (killed)" * is_disturbed] += 1
            if not _is_right(way, reply, status, is_disturbed):
                self.faults.append(f"{way}: {status}, {reply.http_status}")


def _is_right(way: str, reply: Reply, status: str, is_disturbed: bool) -> bool:
    is_hostile = way.startswith("hostile")
    if status in (OK, LEFT):
        return not is_hostile
    if status == CONNECTION_FAILED:
        return is_disturbed
    if reply.http_status == 429 or (reply.http_status == 503 and is_disturbed):
        return reply.has_retry_after
    return is_hostile and 400 <= reply.http_status < 500


class Client:
    """Sends questions in every way, with one API key; a way has a weight."""

    def __init__(self, url: str, grpc_address: str, key: str, checker: Checker) -> None:
        rest = RestSender(url, 1, key)
        remote = GrpcSender(grpc_address, False, key)
        remote.connect()
        self._checker = checker
        self.ways: dict[str, tuple[int, Callable[[Question], Reply]]] = {
            "rest": (30, rest.predict),
            "grpc": (16, remote.predict),
            "stream": (12, rest.stream),
            "stream left": (3, rest.leave_stream),
            "grpc stream left": (3, remote.leave_stream),
            "compare": (4, rest.compare),
            "openai": (8, rest.chat),
            "stored image": (5, rest.store),
            "analysis": (4, rest.analyze),
            "tiles": (3, rest.predict),
            "hostile rest": (3, rest.predict),
            "hostile grpc": (2, remote.predict),
        }

    def send(self, way: str, questions: Questions, rng: random.Random, outcomes: Outcomes) -> None:
        question = questions.next("compare" if way == "compare" else "rest")
        if way == "tiles":
            question = replace(
                question,
                task="object_detection",
                model=MODELS[0],
                parameters={"tiles": "1x2"},
                result_key="detections",
            )
        elif way.startswith("hostile"):
            jpeg = hostile(rng, question.image.jpeg)
            question = replace(question, image=replace(question.image, jpeg=jpeg))
        start_s = time.monotonic()
        reply = self.ways[way][1](question)
        outcomes.add(way, reply, self._checker.status(question, reply), start_s)


def hostile(rng: random.Random, jpeg: bytes) -> bytes:
    """Return bytes that are no image: cut, without a header, random, none, or far too large."""
    huge = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0\0\0\0\0"
    return rng.choice([jpeg[: len(jpeg) // 3], jpeg[2:], rng.randbytes(4000), b"", huge])


def service(count: int, folder: Path) -> Run:
    """Send `count` requests to a service."""
    keys = folder / "keys"
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in _KEYS]
    keys.write_text("\n".join([*hashes, ""]), encoding="utf-8")
    port = free_port()
    settings = {
        "DIPTYCH_MODELS": ",".join(MODELS),
        "DIPTYCH_PORT": str(port),
        "DIPTYCH_GRPC_PORT": str(free_port()),
        "DIPTYCH_GATEWAY_WORKERS": "2",
        "DIPTYCH_API_KEYS_FILE": str(keys),
        "DIPTYCH_IMAGES_FOLDER": str(folder / "images"),
        "DIPTYCH_IMAGES_MB": "20",  # full soon, as the cache
        "DIPTYCH_VISION_CACHE_MB": "32",
    }
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", settings)
    log = folder / "service.log"
    with running(launch, log) as process_id:
        return ServiceLoad(launch, process_id, log, count).run()


class ServiceLoad:
    """Requests to one service until `count` have ended, kills beside them."""

    def __init__(self, launch: Launch, process_id: int, log: Path, count: int) -> None:
        self._url = launch.url
        self._grpc_address = f"127.0.0.1:{launch.environment['DIPTYCH_GRPC_PORT']}"
        self._process_id = process_id
        self._log = log
        self._count = count
        mix = replace(read_mix(ROOT / "loadtest" / "traffic_mix.yaml"), deadline_s=60)
        listing = RestSender(self._url, 1, _KEYS[0]).get("/v1/tasks")
        self._questions = Questions(mix, listing, random.Random(0))
        self._checker = Checker(mix.answers_repeat)
        self._outcomes = Outcomes()

    def run(self) -> Run:
        watch = Watch(1 + self._count / PER, lambda: (self._num_done(), self._use()))
        with watch.running(), ThreadPoolExecutor(_NUM_CLIENTS + 1) as threads:
            jobs = [threads.submit(self._kill)]
            jobs += [threads.submit(self._run_client, number) for number in range(_NUM_CLIENTS)]
        for job in jobs:
            job.result()
        counts = dict(sorted(self._outcomes.replies.items()))
        return Run(watch, counts, self._outcomes.faults)

    def _num_done(self) -> int:
        return self._outcomes.replies.total()

    def _run_client(self, number: int) -> None:
        rng = random.Random(number)
        key = _KEYS[number % len(_KEYS)]
        client = Client(self._url, self._grpc_address, key, self._checker)
        weights = [weight for weight, _ in client.ways.values()]
        while self._num_done() < self._count:
            (way,) = rng.choices(list(client.ways), weights)
            client.send(way, self._questions, rng, self._outcomes)

    def _kill(self) -> None:
        """Kill the latest gateway and PaliGemma's runner, then the oldest and Florence-2's."""
        for number in range(_NUM_KILLS):
            while self._num_done() < self._count * (number + 0.5) / _NUM_KILLS:
                time.sleep(0.1)
            is_first_half = number < _NUM_KILLS / 2
            ids: dict[str, list[int]] = {}
            for name in use_of(process_tree(self._process_id)):
                part, _, process = name.partition("#")
                ids.setdefault(part, []).append(int(process))
            self._outcomes.disturbances.append(time.monotonic())
            for part in ("diptych", f"{MODELS[is_first_half]}-runner"):
                os.kill(max(ids[part]) if is_first_half else min(ids[part]), signal.SIGKILL)

    def _use(self) -> dict[str, Amounts]:
        """Return what each process uses, and what the service does."""
        processes = process_tree(self._process_id)
        series = 0
        for _ in range(20):  # a gateway may be killed meanwhile
            with suppress(httpx.TransportError):
                lines = httpx.get(f"{self._url}/metrics", trust_env=False).text.splitlines()
                series = sum(not line.startswith("#") for line in lines)
                break
        shared = {"series": series, "log MB": self._log.stat().st_size / 1e6}
        return use_of(processes) | {"all": shared | {"shm MB": _size_mb(_memory_folder(processes))}}


def _memory_folder(processes: list[psutil.Process]) -> Path:
    for process in processes:
        with suppress(OSError):
            maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8")
            if folder := re.search(r"/dev/shm/[^/\s]+", maps):
                return Path(folder[0])
    raise RuntimeError("no process of the service has a folder in /dev/shm")


def offline(count: int, folder: Path) -> Run:
    """Answer `count` images in two runs: the first loses its worker, and is ended."""
    scenes = write_images(folder / "images", count)
    (folder / "tmp").mkdir()
    run = _start_offline(folder)
    watch = Watch(1 + count / PER, lambda: (_num_rows(folder), offline_use(run, folder)))
    with watch.running():
        _wait_for_rows(run, folder, count // 5)
        (worker,) = [one for one in process_tree(run.pid) if "MapWorker" in one.name()]
        worker.kill()
        _wait_for_rows(run, folder, count // 2)
        run.terminate()
        statuses = [run.wait()]
        run = _start_offline(folder)
        statuses.append(run.wait())
    faults = offline_faults(folder / "answers", scenes)
    if statuses != [143, 3]:
        faults.append(f"exit statuses {statuses}: {(folder / 'log').read_text()[-2000:]}")
    return Run(watch, {"exit statuses": statuses}, faults)


def _start_offline(folder: Path) -> psutil.Popen:
    options = f"--model {MODELS[0]} --task captioning --format jsonl --shard-size {_SHARD_SIZE}"
    paths = [str(folder / "images"), "--output", str(folder / "answers")]
    with (folder / "log").open("a", encoding="utf-8") as log:
        return psutil.Popen(
            [sys.executable, "-m", "offline", *paths, *options.split()],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(folder / "tmp")},
            stdout=log,
            stderr=log,
        )


def _num_rows(folder: Path) -> int:
    return _SHARD_SIZE * len(list(folder.glob("answers/part-*")))


def _wait_for_rows(run: psutil.Popen, folder: Path, count: int) -> None:
    while run.poll() is None and _num_rows(folder) < count:
        time.sleep(0.5)


def write_images(folder: Path, count: int) -> dict[str, int | None]:
    """Write scenes with a comment of their own (JPEG's COM segment); return scenes by file.

    One of 500 is broken: its scene is None.
    """
    rng = random.Random(0)
    drawn: list[bytes] = []
    while len(drawn) < _NUM_SCENES:
        drawn += map(jpeg_of, draw_scenes((224, 224), rng))
    scenes: dict[str, int | None] = {}
    folder.mkdir()
    for number in range(count):
        scene = number % _NUM_SCENES
        file = folder / f"{number:08}.jpg"
        comment = b"\xff\xfe\0\x0a" + f"{number:08}".encode()
        jpeg = drawn[scene][:2] + comment + drawn[scene][2:]
        is_broken = number % _BROKEN_EVERY == _BROKEN_EVERY // 2
        file.write_bytes(hostile(rng, jpeg) if is_broken else jpeg)
        scenes[str(file)] = None if is_broken else scene
    return scenes


def offline_use(run: psutil.Popen, folder: Path) -> dict[str, Amounts]:
    """Return what the processes of a run use, each, and together while there is a worker."""
    use = use_of(process_tree(run.pid))
    total = {}
    for quantity in ("PSS MB", "anonymous MB"):
        total[f"{quantity} of all"] = sum(amounts[quantity] for amounts in use.values())
    for name in ("tmp", "answers"):
        total[f"MB of {name}"] = _size_mb(folder / name)
    workers = [name for name in use if "MapWorker" in name]
    return use | {name.replace("ray::MapWorker", "all"): total for name in workers}


def _size_mb(folder: Path) -> float:
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.lstat().st_blocks * 512
    return size / 1e6


def offline_faults(output: Path, scenes: dict[str, int | None]) -> list[str]:
    """Return what is wrong: every image has one row, and all rows of a scene have one text."""
    faults = []
    num_rows: Counter[str] = Counter()
    texts: dict[int, str] = {}
    for part in sorted(output.glob("part-*")):
        for line in part.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            num_rows[row["key"]] += 1
            scene = scenes.get(row["key"])
            if scene is None:
                is_right = row["error"] is not None
            else:
                text = texts.setdefault(scene, row["raw_text"])
                is_right = row["error"] is None and row["raw_text"] == text
            if not is_right:
                faults.append(line)
    if num_rows != Counter(scenes.keys()):
        faults.append(f"{num_rows.total()} rows of {len(scenes)} images")
    return faults


def plot(samples: list[dict[str, Any]], unit: str, file: Path) -> None:
    """Draw the memory of the processes over requests or images."""
    figure, axes = pyplot.subplots(figsize=(8, 4))
    lives: dict[str, list[tuple[int, float]]] = {}
    for sample in samples:
        for process, amounts in sample["use"].items():
            if "PSS MB" in amounts:
                lives.setdefault(process, []).append((sample["done"], amounts["PSS MB"]))
    colors: dict[str, str] = {}
    for process, life in lives.items():
        name = process.partition("#")[0]
        if len(life) > len(samples) / 20:
            label = None if name in colors else name
            color = colors.setdefault(name, f"C{len(colors)}")
            axes.plot(*zip(*life, strict=True), color=color, label=label)
    axes.set(xlabel=unit, ylabel="PSS, MB", ylim=(0, None))
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file, dpi=80, bbox_inches="tight")


def report(kind: str, count: int, run: Run) -> tuple[list[str], dict[str, Any]]:
    """Return the lines of a report, and the record."""
    passed, growths, rows = [], {}, []
    for name, life in run.watch.longest_lives(count // 5).items():
        for quantity, first in life[0][1].items():
            slope = growth(life, quantity)
            growths[f"{name}, {quantity}"] = round(slope, 2)
            rows.append((f"{name}, {quantity}", f"{first:.1f}", f"{slope:.2f}"))
            if slope > LIMITS[kind].get(quantity, math.inf):
                passed.append(f"{name}: {quantity} grows by {slope:.2f} per {PER:,}")
    header = ("process", "after the warm-up", f"growth per {PER:,}")
    lines = [table(header, rows), *(f"{name}: {value}" for name, value in run.counts.items())]
    lines += [*run.faults[:20], f"{len(run.faults)} faults", *passed]
    machine = f"{processor_name()}, {os.cpu_count()} cores"
    record: dict[str, Any] = {
        "kind": kind,
        "count": count,
        "machine": machine,
        "counts": run.counts,
    }
    record |= {"faults": run.faults, "passed limits": passed, "growths": growths}
    return lines, record | {"samples": run.watch.samples}


def main() -> int:
    """Run, print the report, and write `endurance-KIND.json` and `.png`."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.endurance", description=__doc__)
    parser.add_argument("kind", choices=tuple(LIMITS))
    parser.add_argument("--count", type=int, default=100_000, help="requests or images")
    parser.add_argument("--record", type=Path, default=ROOT / "build", help="folder")
    options = parser.parse_args()
    options.record.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="end-", dir="/tmp") as folder:
        run = {"service": service, "offline": offline}[options.kind](options.count, Path(folder))
        lines, record = report(options.kind, options.count, run)
        print("\n".join(lines), flush=True)
        file = options.record / f"endurance-{options.kind}.json"
        file.write_text(json.dumps(record, separators=(",", ":")), encoding="utf-8")
        unit = {"service": "requests", "offline": "images"}[options.kind]
        plot(run.watch.samples, unit, file.with_suffix(".png"))
    return 1 if record["faults"] or record["passed limits"] else 0


if __name__ == "__main__":
    sys.exit(main())
