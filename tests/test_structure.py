"""The rules that the folders stand for: which way imports point, who may import what, how long a file may be."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARROWS = {
    "service": {"runners", "tasks"},
    "runners": set[str](),
    "tasks": set[str](),
    "export": {"runners", "tasks"},
    "loadtest": set[str](),  # it speaks to servers over the network
    "client": {"service.proto"},  # likewise, and the generated code needs nothing of the service
}
BENTOML_ENTRY_POINTS = {
    "service/gateway.py",
    "service/supervisor.py",
    "runners/encoder_service.py",
    "runners/runner_service.py",
    "runners/decoder_service.py",
    "runners/model_store.py",
    "export/artifacts/store.py",
    "export/bento.py",
}
MAX_LINES = 300


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the name of every module from which a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def imported(path: Path) -> set[str]:
    """Return the first part of every name that a module imports."""
    return {name.split(".")[0] for name in imported_modules(path)}


def lies_in(module: str, packages: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_point_one_way(folder: str) -> None:
    assert modules(folder)
    for path in modules(folder):
        ours = [name for name in imported_modules(path) if lies_in(name, {*ARROWS, "tests"})]
        assert all(lies_in(name, ARROWS[folder] | {folder}) for name in ours), path


@pytest.mark.parametrize("folder", ARROWS)
def test_only_entry_points_import_bentoml(folder: str) -> None:
    importing = {str(path.relative_to(ROOT)) for path in modules(folder) if "bentoml" in imported(path)}
    assert importing <= BENTOML_ENTRY_POINTS


def test_tasks_need_neither_torch_nor_images() -> None:
    for path in modules("tasks"):
        assert not {"torch", "transformers", "PIL", "bentoml", "pydantic"} & imported(path), path


def test_what_runs_imports_nothing_of_the_export_tools() -> None:
    for path in [*modules("service"), *modules("runners")]:
        assert not {"optimum", "onnx", "onnxscript", "huggingface_hub"} & imported(path), path


def test_the_client_loads_neither_torch_nor_the_service() -> None:
    code = "import sys, client; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"client", "httpx", "grpc"} <= loaded
    assert not {"torch", "bentoml", "pydantic", "starlette", "supervision", "typer", "tasks"} & loaded


@pytest.mark.parametrize("folder", [*ARROWS, "tests"])
def test_no_module_is_over_the_limit(folder: str) -> None:
    page = [path for path in (ROOT / folder).rglob("*") if path.suffix in (".js", ".css", ".html")]
    written = [path for path in [*modules(folder), *page] if "_pb2" not in path.name]  # the rest is generated
    long = [path for path in written if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES]
    assert not long
