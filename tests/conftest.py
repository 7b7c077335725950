import asyncio
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.export_cli import EMBEDDED, ROOT, ModelStore
from tests.support.running_service import RunningService, running_service

# Two workers share the cores, and a waiting thread of torch spins; read when torch is imported,
# here and by exports.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is a coroutine, in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Report in red, at the end, the parts that were not tested."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = {report.longrepr[2] for report in skipped if isinstance(report.longrepr, tuple)}
    for reason in sorted(reasons):
        if "NOT tested" in reason:
            terminalreporter.write_line(reason, red=True, bold=True)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """A model store with both embedded models: those of `make export` where they are up to date."""
    store = ModelStore(tmp_path_factory.mktemp("bentoml"))
    embedded = ModelStore(ROOT / ".bentoml")
    for model_id in EMBEDDED:
        store.add_newest(model_id, embedded)
    run = store.export("--if-changed", *EMBEDDED)
    assert run.returncode == 0, run.stderr
    return store


@pytest.fixture(params=EMBEDDED)
def model_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def artifacts(exported: ModelStore, model_id: str) -> Path:
    """The artifact folder of an embedded model."""
    return exported.newest(model_id)


@pytest.fixture(scope="session")
def service(
    exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """The service with both models, a folder for images, and default settings."""
    folder = tmp_path_factory.mktemp("service")
    settings = {"DIPTYCH_IMAGES_FOLDER": str(folder / "images")}
    with running_service(exported.home, folder / "service.log", **settings) as running:
        yield running


@pytest.fixture
def client(service: RunningService) -> Iterator[httpx.Client]:
    with service.client() as http:
        yield http
