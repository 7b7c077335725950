"""Gateway, encoders and decoders of one model as services of their own, as on hosts of their own."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.export_cli import ModelStore
from tests.support.processes import descendants, is_alive
from tests.support.running_service import OPEN, SERVICE, RunningService, free_port, running_service
from tests.support.waiting import wait_until

MODEL = "florence-2-mini"
PARTS = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a replica listens."""

    part: str
    port: int

    @property
    def pair(self) -> str:
        """Model and URL, as the settings have them."""
        return f"{MODEL}=http://127.0.0.1:{self.port}"


class Replicas:
    """Starts replicas, and a gateway over them; each once more where it has ended."""

    def __init__(self, store: ModelStore, folder: Path, stack: ExitStack) -> None:
        self._store = store
        self._folder = folder
        self._stack = stack
        self.places = [Place(part, free_port()) for part in PARTS for _ in range(2)]
        self.running: dict[Place, RunningService] = {}

    def start(self, places: Sequence[Place]) -> None:
        """Start replicas side by side; return when they are ready."""
        with ThreadPoolExecutor(len(places)) as pool:
            self.running.update(zip(places, pool.map(self._started, places), strict=True))

    def _started(self, place: Place) -> RunningService:
        return self.service((place.part, MODEL), str(place.port), DIPTYCH_PORT=str(place.port))

    def gateway(self, **settings: str) -> RunningService:
        """Start a gateway alone."""
        urls = {
            f"DIPTYCH_{part.upper()}_URLS": ",".join(place.pair for place in self.places if place.part == part)
            for part in PARTS
        }
        return self.service(("gateway",), "gateway", DIPTYCH_MODELS=MODEL, **urls, **settings)

    def service(self, arguments: Sequence[str], name: str, **settings: str) -> RunningService:
        """Start `python -m service` with arguments."""
        log = self._folder / f"{name}-{len(self.running)}.log"
        running = running_service(self._store.home, log, OPEN, (*SERVICE, *arguments), **settings)
        return self._stack.enter_context(running)

    def kill(self, place: Place) -> None:
        """End a replica with all its processes at once, as with its host."""
        supervisor = self.running[place].process
        workers = descendants(supervisor.pid)
        supervisor.kill()
        supervisor.wait()
        wait_until(lambda: not any(is_alive(worker) for worker in workers))


@contextmanager
def replicas(store: ModelStore, folder: Path) -> Iterator[Replicas]:
    """Yield two encoders and two decoders that run, and stop whatever was started."""
    with ExitStack() as stack:
        made = Replicas(store, folder, stack)
        made.start(made.places)
        yield made
