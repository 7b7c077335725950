"""Mutation testing of every room: `python -m tests.support.mutation [--rooms R ...] [--workers N]`.

Of each room a fixed sample of mutants is applied, one at a time, in a copy of the repository, where
the room's tests run. The exit status is 1 if fewer than nine tenths of a room's mutants are killed
by a failed test or by the timeout. The results are in mutation.json, with the reason of each
survivor, which is written by hand and kept by its name.

The sample is ordered by the hashes of the mutants' names: a change of the code changes only its own
part of it.
"""

import argparse
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

from tests.support.mutants import Mutant, mutants_of

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).with_suffix(".json")
MIN_KILLED = 0.9
NUM_MUTANTS = 12  # for each room
_TREES = (
    "tasks",
    "service",
    "runners",
    "wire",
    "imaging",
    "offline",
    "client/diptych_client",
    "export/artifacts",
    "export/checkpoints",
    "export/tuning",
)
_EXCLUDED = {
    "service/supervision/run_folder.py": (
        "a mutant removes the folders of services that run on this machine"
    ),
    "client/diptych_client/transports/vision_pb2.py": "generated",
}
# Tests of a room beside those of the same folder in tests/.
_MORE_TESTS = {
    "client/diptych_client/clients": ["tests/client/test_*.py"],
    "client/diptych_client/transports": ["tests/client/test_*.py"],
    "offline": ["tests/system/test_offline.py"],
    "runners": ["tests/system/test_transport.py", "tests/runners/adapters/test_hot_loading.py"],
    "runners/decoder": ["tests/runners/cuda_graphs/test_*.py"],
    "wire": ["tests/service/runner_client", "tests/system/test_transport.py"],
    "wire/telemetry": [
        "tests/service/telemetry/test_traces.py",
        "tests/runners/encoder/test_features_cache.py",
        "tests/test_docs.py",
    ],
    "service": [
        "tests/test_docs.py",
        "tests/service/http/test_rest_errors.py",
        "tests/service/rpc",
        "tests/system/test_metrics.py",
    ],
    "service/analysis": [
        "tests/service/http/test_several_images.py",
        "tests/service/rpc/test_calls.py",
    ],
    "service/http": ["tests/service/telemetry/test_traces.py"],
    "service/rpc": ["tests/service/open_inference/test_grpc_api.py"],
    "service/schema": ["tests/service/http/test_rest_*.py"],
    "service/supervision": ["tests/system/test_gateway_workers.py"],
}
_MAX_BASELINE_S = 1800
_MAX_LOG_CHARS = 3000
_SURVIVED = 0  # pytest's exit codes; any other kills the mutant
_NO_TESTS = 5


class BaselineFailed(Exception):
    """The tests of a room fail without a mutant: each mutant would count as killed."""


@dataclass(slots=True)
class Room:
    """The result of a room; `alive` has the reason of each survivor."""

    mutants: int
    killed: int
    alive: dict[str, str]


def rooms() -> dict[str, list[str]]:
    """Return the modules of every room, by its folder."""
    found: dict[str, list[str]] = {}
    for tree in _TREES:
        for path in sorted((ROOT / tree).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name not in _EXCLUDED and not name.startswith("service/rpc/proto/"):
                found.setdefault(str(Path(name).parent), []).append(name)
    return found


def sample(modules: Sequence[str]) -> list[Mutant]:
    """Return the mutants of a room that are run."""
    found: list[Mutant] = []
    for name in modules:
        found += mutants_of(name, (ROOT / name).read_text(encoding="utf-8"))
    return sorted(found, key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())[
        :NUM_MUTANTS
    ]


def paths_of_tests(room: str) -> list[str]:
    """Return the arguments of pytest that name the tests of a room."""
    mirrored = f"tests/{room.replace('client/diptych_client', 'client')}"
    patterns = [f"{mirrored}/test_*.py" if room in _TREES else mirrored, *_MORE_TESTS.get(room, [])]
    found = chain.from_iterable(sorted(ROOT.glob(pattern)) for pattern in patterns)
    return [path.relative_to(ROOT).as_posix() for path in found]


@dataclass(frozen=True, slots=True)
class Worker:
    """A copy of the repository and the process that runs its tests."""

    tree: Path
    process: subprocess.Popen[str]

    def exit_code(self, room: str, first: str, timeout_s: float) -> int:
        """Run the tests of a room."""
        request = {
            "arguments": paths_of_tests(room),
            "first": first,
            "timeout_s": int(timeout_s),
            "log": "../tests.log",
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    @contextmanager
    def mutated(self, mutant: Mutant, number: int) -> Iterator[None]:
        """Have the mutant in the tree for as long as the context lasts."""
        path = self.tree / mutant.path
        source = path.read_bytes()
        times = path.stat()
        path.write_bytes(mutant.applied(source))
        # a unique time: Python knows compiled modules by time and size
        os.utime(path, (number, number))
        try:
            yield
        finally:
            path.write_bytes(source)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextmanager
def running_worker() -> Iterator[Worker]:
    """Copy the repository, start the process; end and remove both."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree = Path(folder, "tree")
        files = subprocess.check_output(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, text=True
        )
        for name in files.splitlines():
            if (ROOT / name).is_file():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, tree / name)
        shutil.copytree(ROOT / ".bentoml", tree / ".bentoml", symlinks=True)
        environment = os.environ | {
            "PYTHONPATH": str(tree / "client"),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": folder,
        }
        command = [sys.executable, "-m", "tests.support.forked_tests"]
        with subprocess.Popen(
            command,
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            yield Worker(tree, process)
            process.communicate()


def run_room(room: str, modules: Sequence[str], workers: Sequence[Worker]) -> Room:
    """Run the sample of a room; return its row of the results."""
    start_s = time.monotonic()
    code = workers[0].exit_code(room, "", _MAX_BASELINE_S)
    if code != _SURVIVED:
        log = (workers[0].tree.parent / "tests.log").read_text(encoding="utf-8")[-_MAX_LOG_CHARS:]
        raise BaselineFailed(
            f"the tests of {room} fail without a mutant, with status {code}:\n{log}"
        )
    # a busy machine must not count as a killer
    timeout_s = 60 + 4 * (time.monotonic() - start_s)
    free: queue.Queue[Worker] = queue.Queue()
    for worker in workers:
        free.put(worker)

    def is_killed(number: int, mutant: Mutant) -> bool:
        worker = free.get()
        try:
            with worker.mutated(mutant, number):
                code = worker.exit_code(room, Path(mutant.path).stem, timeout_s)
        finally:
            free.put(worker)
        print(
            f"{time.strftime('%H:%M:%S')} {code:4} {mutant.path}:{mutant.line} {mutant.name}",
            flush=True,
        )
        return code not in (_SURVIVED, _NO_TESTS)

    mutants = sample(modules)
    with ThreadPoolExecutor(len(workers)) as threads:
        killed = list(threads.map(is_killed, range(1, len(mutants) + 1), mutants))
    alive = [mutant.name for mutant, dead in zip(mutants, killed, strict=True) if not dead]
    return Room(len(mutants), sum(killed), dict.fromkeys(alive, ""))


def read_results(path: Path = RESULTS) -> dict[str, Room]:
    """Return the results of every room that has been run."""
    if not path.exists():
        return {}
    return {room: Room(**row) for room, row in json.loads(path.read_text(encoding="utf-8")).items()}


def add_result(name: str, room: Room, path: Path = RESULTS) -> None:
    """Write the results with one room's replaced; reasons of its survivors are kept."""
    results = read_results(path)
    reasons = results[name].alive if name in results else {}
    room.alive = {mutant: reasons.get(mutant, reason) for mutant, reason in room.alive.items()}
    rows = {each: asdict(row) for each, row in sorted((results | {name: room}).items())}
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rooms; return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m tests.support.mutation", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--rooms", nargs="+", default=list(rooms()), metavar="R", help="folders; default: all"
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="tests that run at the same time; default: 2"
    )
    chosen = parser.parse_args(arguments)
    is_low = False
    with ExitStack() as stack:
        workers = [stack.enter_context(running_worker()) for _ in range(chosen.workers)]
        for name in chosen.rooms:
            try:
                room = run_room(name, rooms()[name], workers)
            except BaselineFailed as error:
                print(error, flush=True)
                is_low = True
                continue
            add_result(name, room)
            print(f"{name}: {room.killed} of {room.mutants} mutants are killed", flush=True)
            is_low = is_low or room.killed < MIN_KILLED * room.mutants
    return int(is_low)


if __name__ == "__main__":
    sys.exit(main())
