"""Runners of one model as separate services, as on several hosts, and gateways over them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.export_cli import ModelStore
from tests.support.processes import descendants, is_alive
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
        """Start runners side by side; return when they are ready."""
        with ThreadPoolExecutor(len(ports)) as pool:
            self.running.update(zip(ports, pool.map(self._started, ports), strict=True))

    def _started(self, port: int) -> RunningService:
        return self.service(("runner", MODEL), str(port), DIPTYCH_PORT=str(port))

    def gateway(self, url: str, **settings: str) -> RunningService:
        """Start a gateway alone, whose runner is at `url`."""
        urls = {"DIPTYCH_RUNNER_URLS": f"{MODEL}={url}"}
        return self.service(("gateway",), "gateway", DIPTYCH_MODELS=MODEL, **urls, **settings)

    def service(self, arguments: Sequence[str], name: str, **settings: str) -> RunningService:
        """Start the service with the arguments of a role."""
        self._num_started += 1
        log = self._folder / f"{name}-{self._num_started}.log"
        running = forked_service(self._store.home, log, OPEN, arguments, **settings)
        return self._stack.enter_context(running)

    def kill(self, port: int) -> None:
        """End a runner with all its processes at once, as with its host."""
        supervisor = self.running[port].process
        workers = descendants(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
        wait_until(lambda: not any(is_alive(worker) for worker in workers))


@contextmanager
def replicas(store: ModelStore, folder: Path, num_runners: int) -> Iterator[Replicas]:
    """Yield runners that run, and stop whatever was started."""
    with ExitStack() as stack:
        made = Replicas(store, folder, stack, num_runners)
        made.start(made.ports)
        yield made
