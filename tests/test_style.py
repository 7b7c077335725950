"""How lines read: one step a line, and no detour through a helper that one place calls."""

import ast
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.code_folders import PACKAGES

ROOT = Path(__file__).parents[1]
ROOMS = (*PACKAGES, "deploy", "docs", "tests")
MAX_USED_ONCE_SHARE = 0.08
# What rooms that are not clean yet may have: these numbers only shrink.
STILL_ALLOWED = {
    "service": {"used once": 63},
    "imaging": {"used once": 5},
    "deploy": {"nested comprehensions": 2},
    "tests": {"nested comprehensions": 103},
}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@functools.cache
def parsed(room: str) -> dict[Path, ast.Module]:
    paths = sorted((ROOT / room).rglob("*.py"))
    written = [path for path in paths if "_pb2" not in path.name]  # the rest is generated
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in written}


def holds_another(node: ast.AST, kinds: type[ast.AST] | tuple[type[ast.AST], ...]) -> bool:
    return any(isinstance(child, kinds) for child in ast.walk(node) if child is not node)


def is_nested_comprehension(node: ast.AST) -> bool:
    return isinstance(node, COMPREHENSIONS) and (
        len(node.generators) > 1 or holds_another(node, COMPREHENSIONS)
    )


def is_chained_conditional(node: ast.AST) -> bool:
    return isinstance(node, ast.IfExp) and holds_another(node, ast.IfExp)


def is_unrelated_tuple_assignment(node: ast.AST) -> bool:
    """Return True unless a value reads a target, which a line each could not do as it stands."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    tuples = [target for target in node.targets if isinstance(target, ast.Tuple | ast.List)]
    targets = {ast.unparse(leaf) for each in tuples for leaf in leaves(each)}
    values = {ast.unparse(part) for part in ast.walk(node.value) if isinstance(part, ast.expr)}
    return bool(tuples) and not targets & values


def leaves(target: ast.expr) -> Iterator[ast.expr]:
    if isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from leaves(element)
    else:
        yield target


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize(
    ("name", "is_found"),
    [
        ("nested comprehensions", is_nested_comprehension),
        ("chained conditionals", is_chained_conditional),
        ("tuple assignments", is_unrelated_tuple_assignment),
    ],
)
def test_a_line_takes_one_step(room: str, name: str, is_found: Callable[[ast.AST], bool]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in parsed(room).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.expr | ast.stmt) and is_found(node)
    ]
    assert len(found) <= STILL_ALLOWED.get(room, {}).get(name, 0), found


def functions(body: list[ast.stmt]) -> Iterator[str]:
    """Yield the names of functions of a module and methods of its classes."""
    for node in body:
        if isinstance(node, FUNCTIONS):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            yield from functions(node.body)


def referenced(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr


@pytest.mark.parametrize("room", ROOMS)
def test_few_private_functions_are_used_once(room: str) -> None:
    trees = parsed(room).values()
    names = [name for tree in trees for name in functions(tree.body)]
    num_references = Counter(name for tree in trees for name in referenced(tree))
    private = [name for name in names if name.startswith("_") and not name.startswith("__")]
    used_once = [name for name in private if num_references[name] == 1]
    num_allowed = STILL_ALLOWED.get(room, {}).get("used once", MAX_USED_ONCE_SHARE * len(names))
    assert len(used_once) <= num_allowed, f"{len(used_once)} of {len(names)}: {used_once}"


@pytest.mark.parametrize(
    ("source", "is_found"),
    [
        ("[[y for y in x] for x in z]", is_nested_comprehension),
        ("[y for x in z for y in x]", is_nested_comprehension),
        ("any(x for x in {y for y in z})", is_nested_comprehension),
        ("a if b else c if d else e", is_chained_conditional),
        ("a, b = 1, 2", is_unrelated_tuple_assignment),
        ("(a, b), c = d, e", is_unrelated_tuple_assignment),
    ],
)
def test_what_takes_two_steps_is_found(source: str, is_found: Callable[[ast.AST], bool]) -> None:
    assert any(map(is_found, ast.walk(ast.parse(source))))


@pytest.mark.parametrize("source", ["a, b = b, a", "old, self.x = self.x, 0", "a, b = f()"])
def test_a_swap_and_a_call_may_fill_a_tuple(source: str) -> None:
    assert not any(map(is_unrelated_tuple_assignment, ast.walk(ast.parse(source))))
