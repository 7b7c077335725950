"""The rules that the folders stand for: which way imports point, and who may import what."""

import ast
import graphlib
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = {"wire", "imaging", "tasks"}
ARROWS = {
    "service": BASE
    | {
        "runners.bentoml_internals",
        "runners.options",
        "runners.service",
    },
    "runners": {"wire"},
    "wire": set[str](),
    "imaging": set[str](),
    "tasks": set[str](),
    "export": BASE
    | {
        "diptych_client.datasets",  # the tuning reads datasets as the evaluation does
        "diptych_client.tools.matching",
        "runners",
    },
    "laboratory": BASE | {"export", "diptych_client"},
    "offline": BASE
    | {
        "service.admission",
        "service.analysis",
        "service.errors",
        "service.http.body",  # the values of fields as text
        "service.images",
        "service.inference",
        "service.schema",
        "service.settings",
        "runners.in_process_channel",
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
# folders that must not import these packages, anywhere
FORBIDDEN = {
    ("tasks",): {"torch", "transformers", "PIL", "bentoml"},
    ("tasks/florence2", "tasks/paligemma", "tasks/tiles"): {"pydantic"},  # for the files only
    ("wire",): {"torch", "transformers", "safetensors"},  # gateways import all of it
    ("service", "runners", "wire"): {"onnx", "huggingface_hub"},
    ("service", "runners", "wire", "tasks"): {"ray", "pyarrow", "fsspec"},
}
IN_CYCLES = {"tasks.paligemma", "tasks.parsing"}  # they still import each other
# packages of the client's wheel: each imports the earlier ones only
CLIENT_LAYERS = ("diptych_client", "diptych_client.datasets", "diptych_client.tools")
# packages that importing the client must not load
NOT_LOADED = (
    "torch bentoml pydantic starlette service supervision typer tasks imaging mcp cvat_sdk fiftyone"
    " jsonschema"
)


def modules(folder: str) -> list[Path]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths, folder
    return paths


def package(folder: str) -> str:
    return folder.rpartition("/")[2]


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Return the name of every module from which a module imports, anywhere in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return tuple(names)


def packages(path: Path) -> set[str]:
    """Return the first part of every name that a module imports."""
    return {name.split(".")[0] for name in imported_modules(path)}


def lies_in(module: str, roots: set[str]) -> bool:
    return any(f"{module}.".startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_point_one_way(folder: str) -> None:
    rooms = {*map(package, ARROWS), "tests"}
    allowed = ARROWS[folder] | {package(folder)}
    for path in modules(folder):
        for name in imported_modules(path):
            assert not lies_in(name, rooms) or lies_in(name, allowed), (path, name)


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_of_bentoml(folder: str) -> None:
    """Entry points alone import it, and one module alone uses its private names."""
    for path in modules(folder):
        name = str(path.relative_to(ROOT))
        assert "bentoml" not in packages(path) or name in BENTOML_ENTRY_POINTS, name
        if path.name != "bentoml_internals.py":
            names = imported_modules(path)
            assert not [name for name in names if name.startswith(("_bentoml", "bentoml._"))], path
            assert "BENTOML_RUNNER_MAP" not in path.read_text(encoding="utf-8"), path


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_between_folders_have_no_circle(folder: str) -> None:
    rooms: dict[str, set[str]] = {}
    for path in modules(folder):
        room = ".".join(path.parent.relative_to(ROOT / folder).parts)
        imported_rooms = {room_of(folder, name) for name in imported_modules(path)}
        rooms.setdefault(room, set()).update(imported_rooms - {room, ""})
    rooms.pop("", None)  # it composes the others
    try:
        graphlib.TopologicalSorter(rooms).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def import_graph() -> dict[str, set[str]]:
    """Return the modules that each module imports, also in functions and for types alone."""
    paths = {}
    for folder in ARROWS:
        root = ROOT / folder
        for path in modules(folder):
            parts = path.relative_to(root.parent).with_suffix("").parts
            paths[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        imported = set[str]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    name = f"{node.module}.{alias.name}"
                    imported.add(name if name in paths else node.module)
        graph[module] = {name for name in imported - {module} if name in paths}
    return graph


def test_modules_do_not_import_each_other() -> None:
    graph = import_graph()
    for module in graph:
        if lies_in(module, IN_CYCLES):
            graph[module] = set()
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def room_of(folder: str, module: str) -> str:
    """Return the sub-package of `folder` that a module of it lies in."""
    if not lies_in(module, {package(folder)}):
        return ""
    path = (ROOT / folder).joinpath(*module.split(".")[1:])
    room = path if (path / "__init__.py").is_file() else path.parent
    return ".".join(room.relative_to(ROOT / folder).parts)


def client_layer(module: str) -> int:
    return max(i for i, layer in enumerate(CLIENT_LAYERS) if lies_in(module, {layer}))


def test_layers_of_the_client_import_earlier_ones_only() -> None:
    for path in modules("client/diptych_client"):
        module = ".".join(path.relative_to(ROOT / "client").with_suffix("").parts)
        for name in imported_modules(path):
            if lies_in(name, {"diptych_client"}):
                assert client_layer(name) <= client_layer(module), (path, name)


@pytest.mark.parametrize("folders", FORBIDDEN)
def test_forbidden_imports(folders: tuple[str, ...]) -> None:
    for folder in folders:
        for path in modules(folder):
            assert not FORBIDDEN[folders] & packages(path), path


def test_imaging_needs_pillow_and_blake3_only() -> None:
    """A sandboxed program imports it, and so does a tuning without the service."""
    for path in modules("imaging"):
        assert packages(path) - sys.stdlib_module_names <= {"imaging", "PIL", "blake3"}, path


def test_client_loads_neither_torch_nor_the_service() -> None:
    code = "import sys, diptych_client; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert {"diptych_client", "httpx", "grpc"} <= loaded
    assert loaded.isdisjoint(NOT_LOADED.split())


@pytest.mark.parametrize("folder", ARROWS)
def test_no_flag_makes_code_of_data(folder: str) -> None:
    """Ruff refuses modules that unpickle (pyproject.toml)."""
    flag = re.compile(r"(trust_remote_code|allow_pickle)=(?!False)|weights_only=(?!True)")
    for path in modules(folder):
        assert not flag.search(path.read_text(encoding="utf-8")), path
