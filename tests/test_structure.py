"""The rules that the folders stand for: which way imports point, who may import what, how long a file may be."""

import ast
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
}
BENTOML_ENTRY_POINTS = {
    "service/gateway.py",
    "runners/encoder_service.py",
    "runners/decoder_service.py",
    "runners/model_store.py",
    "export/store.py",
}
MAX_LINES = 300


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Yield the first part of every name that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", ARROWS)
def test_imports_point_one_way(folder: str) -> None:
    assert modules(folder)
    for path in modules(folder):
        ours = {*ARROWS, "tests"} & set(imported(path))
        assert ours <= ARROWS[folder] | {folder}, path


@pytest.mark.parametrize("folder", ARROWS)
def test_only_entry_points_import_bentoml(folder: str) -> None:
    importing = {str(path.relative_to(ROOT)) for path in modules(folder) if "bentoml" in imported(path)}
    assert importing <= BENTOML_ENTRY_POINTS


def test_tasks_need_neither_torch_nor_images() -> None:
    for path in modules("tasks"):
        assert not {"torch", "transformers", "PIL", "bentoml", "pydantic"} & set(imported(path)), path


def test_what_runs_imports_nothing_of_the_export_tools() -> None:
    for path in [*modules("service"), *modules("runners")]:
        assert not {"optimum", "onnx", "onnxscript", "huggingface_hub"} & set(imported(path)), path


@pytest.mark.parametrize("folder", [*ARROWS, "tests"])
def test_no_module_is_over_the_limit(folder: str) -> None:
    long = [path for path in modules(folder) if len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES]
    assert not long
