"""No data becomes code: nothing unpickles, and no checkpoint brings its own."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_structure import ARROWS

ROOT = Path(__file__).parents[1]
# Shards that the run itself has pickled for its own workers, as Ray pickles the rest.
OWN_DATA = {"offline/pipeline.py": ["pickle"]}
UNPICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
TRUE_FLAGS = {"trust_remote_code", "allow_pickle"}


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def name_of(call: ast.Call) -> str:
    return ast.unparse(call.func)


def violations(source: str) -> Iterator[str]:
    """Yield what a module does that would make code of data."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in names if name.split(".")[0] in UNPICKLING)
    for call in calls(tree):
        flags = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        yield from (
            f"{name}={flags[name]}" for name in TRUE_FLAGS & flags.keys() if flags[name] != "False"
        )
        if name_of(call) in UNSAFE_CALLS or (
            name_of(call) == "torch.load" and flags.get("weights_only") != "True"
        ):
            yield name_of(call)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import numpy as np; np.load('a', allow_pickle=True)",
        "AutoModel.from_pretrained('a', trust_remote_code=True)",
        "AutoModel.from_pretrained('a', trust_remote_code=value)",
        "torch.load('a')",
        "torch.load('a', weights_only=False)",
        "yaml.load(text)",
        "eval(text)",
    ],
)
def test_what_makes_code_of_data_is_found(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize("folder", ARROWS)
def test_no_module_makes_code_of_data(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        names = list(violations(path.read_text(encoding="utf-8")))
        assert names == OWN_DATA.get(path.relative_to(ROOT).as_posix(), []), path


def test_what_is_served_is_loaded_from_safetensors_and_plain_arrays() -> None:
    for folder in ("service", "runners", "wire", "imaging", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not [call for call in calls(tree) if name_of(call) == "torch.load"], path
