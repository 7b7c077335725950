"""Runners of one model as separate services, as on several hosts, and gateways over them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.export_cli import ModelStore
from tests.support.processes import Process, descendants, is_alive
from tests.support.running_service import OPEN, RunningService, forked_service, free_port
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"


class Replicas:
    """Starts runners, and gateways over a URL; each once more where it has ended."""

    def __init__(self, store: ModelStore, folder: Path, stack: ExitStack, num_runners: int) -> None:
        self._store = store
        self._folder = folder
        self._stack = stack
        self.ports = [free_port() for _ in range(num_runners)]
        self.running: dict[int, RunningService] = {}
        self._num_started = 0

    def start(self, ports: Sequence[int]) -> None:
        with ThreadPoolExecutor(len(ports)) as pool:
            self.running.update(zip(ports, pool.map(self._runner, ports), strict=True))

    def _runner(self, port: int) -> RunningService:
        return self._service("runner", MODEL, DIPTYCH_PORT=str(port))

    def gateway(self, url: str, **settings: str) -> RunningService:
        urls = {"DIPTYCH_RUNNER_URLS": f"{MODEL}={url}"}
        return self._service("gateway", DIPTYCH_MODELS=MODEL, **urls, **settings)

    def _service(self, *role: str, **settings: str) -> RunningService:
        self._num_started += 1
        log = self._folder / f"{self._num_started}.log"
        return self._stack.enter_context(
            forked_service(self._store.home, log, OPEN, role, **settings)
        )


def kill_all(supervisor: Process) -> None:
    """End a service with all its processes at once, as with its host."""
    workers = descendants(supervisor.pid)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


@contextmanager
def replicas(store: ModelStore, folder: Path, num_runners: int) -> Iterator[Replicas]:
    with ExitStack() as stack:
        runners = Replicas(store, folder, stack, num_runners)
        runners.start(runners.ports)
        yield runners
