"""The rules that the folders stand for: which way imports point, and who may import what."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARROWS = {
    "service": {
        "runners.bentoml_internals",
        "runners.in_process_channel",
        "runners.options",
        "runners.service",
        "wire",
        "imaging",
        "tasks",
    },
    "runners": {"wire"},
    "wire": set[str](),
    "imaging": set[str](),
    "tasks": set[str](),
    "export": {
        "diptych_client.evaluation",  # the tuning reads datasets as the evaluation does
        "diptych_client.inputs",
        "diptych_client.long_runs",
        "diptych_client.matching",
        "runners",
        "wire",
        "imaging",
        "tasks",
    },
    "laboratory": {
        "export",
        "loadtest.figures",
        "loadtest.processes",
        "diptych_client",  # it matches boxes
        "tests.support.random_weights",
        "runners",
        "wire",
        "imaging",
        "tasks",
    },
    "offline": {
        "service.admission",
        "service.analysis",
        "service.errors",
        "service.http.body",  # the values of fields as text
        "service.images",
        "service.inference",
        "service.schema",
        "service.settings",
        "runners.in_process_channel",
        "wire",
        "imaging",
        "tasks",
    },
    "loadtest": set[str](),  # it speaks to servers over the network
    "client/diptych_client": set[str](),  # likewise
}
BENTOML_ENTRY_POINTS = {
    "service/gateway.py",
    "runners/bentoml_internals.py",
    "runners/service.py",
    "wire/artifacts/model_store.py",
    "export/artifacts/store.py",
    "export/bento.py",
}
LINUX = re.compile(
    r"memfd_create|/proc/|/dev/shm|prctl|posix_fallocate|sched_getaffinity|pidfd_open|\"/proc\""
)
LINUX_OF_TOOLS = {
    "export/resources.py",  # without /proc it does not know how much memory is free
    "loadtest/figures.py",  # names the processor
    "loadtest/processes.py",  # counts the cores
}


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def package(folder: str) -> str:
    return folder.rpartition("/")[2]


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
        ours = [
            name
            for name in imported_modules(path)
            if lies_in(name, {*map(package, ARROWS), "tests"})
        ]
        assert all(lies_in(name, ARROWS[folder] | {package(folder)}) for name in ours), path


@pytest.mark.parametrize("folder", ARROWS)
def test_only_entry_points_import_bentoml(folder: str) -> None:
    importing = {
        str(path.relative_to(ROOT)) for path in modules(folder) if "bentoml" in imported(path)
    }
    assert importing <= BENTOML_ENTRY_POINTS


@pytest.mark.parametrize("folder", ARROWS)
def test_one_module_alone_uses_private_names_of_bentoml(folder: str) -> None:
    for path in modules(folder):
        if path.name == "bentoml_internals.py":
            continue
        for name in imported_modules(path):
            assert not name.startswith(("_bentoml", "bentoml._")), path
        assert "BENTOML_RUNNER_MAP" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_between_folders_have_no_circle(folder: str) -> None:
    rooms: dict[str, set[str]] = {}
    for path in modules(folder):
        room = ".".join(path.parent.relative_to(ROOT / folder).parts) or "."
        found = {room_of(folder, name) for name in imported_modules(path)}
        rooms.setdefault(room, set()).update(each for each in found if each not in (None, room))
    rooms.pop(".", None)  # it composes the others
    try:
        tuple(
            graphlib.TopologicalSorter(
                {room: to - {"."} for room, to in rooms.items()}
            ).static_order()
        )
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def room_of(folder: str, module: str) -> str | None:
    """Return the sub-package of `folder` that a module of it lies in."""
    package = folder.rpartition("/")[2]
    if not lies_in(module, {package}):
        return None
    path = (ROOT / folder).joinpath(*module.split(".")[1:])
    found = path if (path / "__init__.py").is_file() else path.parent
    return ".".join(found.relative_to(ROOT / folder).parts) or "."


def test_tasks_need_neither_torch_nor_images() -> None:
    for path in modules("tasks"):
        assert not {"torch", "transformers", "PIL", "bentoml", "pydantic"} & imported(path), path


def test_imaging_needs_pillow_and_blake3_only() -> None:
    """The sandboxed program that decodes heavy images imports it, and so does a tuning without the
    service.
    """
    for path in modules("imaging"):
        assert imported(path) - sys.stdlib_module_names <= {"imaging", "PIL", "blake3"}, path


def test_the_wire_needs_no_tensors() -> None:
    """Gateways import all of it."""
    for path in modules("wire"):
        assert not {"torch", "transformers", "safetensors"} & imported(path), path


def test_what_runs_imports_nothing_of_the_export_tools() -> None:
    for path in [*modules("service"), *modules("runners"), *modules("wire")]:
        assert not {"optimum", "onnx", "onnxscript", "huggingface_hub"} & imported(path), path


def test_one_module_alone_needs_linux() -> None:
    """The sandbox is none elsewhere, as it says."""
    for folder in ARROWS.keys() - {"laboratory"}:
        for path in modules(folder):
            name = str(path.relative_to(ROOT))
            if name not in ("wire/host.py", "imaging/sandbox.py", *LINUX_OF_TOOLS):
                assert not LINUX.search(path.read_text(encoding="utf-8")), name


def test_the_client_and_the_tasks_load_no_module_of_one_system() -> None:
    for path in [*modules("client/diptych_client"), *modules("tasks")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                assert not names & {"fcntl", "msvcrt", "pwd", "resource", "termios"}, path


def test_what_serves_needs_no_ray() -> None:
    for path in [*modules("service"), *modules("runners"), *modules("wire"), *modules("tasks")]:
        assert not {"ray", "pyarrow", "fsspec"} & imported(path), path


def test_the_client_loads_neither_torch_nor_the_service() -> None:
    code = "import sys, diptych_client; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    assert {"diptych_client", "httpx", "grpc"} <= loaded
    assert (
        not {
            "torch",
            "bentoml",
            "pydantic",
            "starlette",
            "service",
            "supervision",
            "typer",
            "tasks",
        }
        & loaded
    )
    assert not {"imaging", "mcp", "cvat_sdk", "fiftyone", "jsonschema"} & loaded
