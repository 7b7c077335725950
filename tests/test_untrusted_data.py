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
SERVED = ("service", "runners", "wire", "imaging", "tasks")


def violations(source: str) -> Iterator[str]:
    """Yield what a module does that would make code of data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if root_of(alias.name) in UNPICKLING)
        elif isinstance(node, ast.ImportFrom) and root_of(node.module or "") in UNPICKLING:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            flags = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            for name in TRUE_FLAGS & flags.keys():
                if flags[name] != "False":
                    yield f"{name}={flags[name]}"
            function = ast.unparse(node.func)
            is_unsafe_load = function == "torch.load" and flags.get("weights_only") != "True"
            if function in UNSAFE_CALLS or is_unsafe_load:
                yield function


def root_of(module: str) -> str:
    return module.split(".")[0]


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
def test_violations(source: str) -> None:
    assert list(violations(source))


@pytest.mark.parametrize("folder", ARROWS)
def test_no_module_makes_code_of_data(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        assert list(violations(source)) == OWN_DATA.get(name, []), name
        # what is served is loaded from safetensors and plain arrays
        assert folder not in SERVED or "torch.load(" not in source, name
