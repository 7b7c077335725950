"""Mutants of a module: each is one small change of its source, named by function and change.

It runs nothing.

    < to <=, == to !=, in to not in ...    a comparison or its boundary
    and to or, not, a condition negated    a decision
    + to -, * to /, n to n + 1, True       a value
    f(a, b) to f(b, a), return None        a call, a result
    a call, assignment, raise to pass      a statement removed; break to continue

Annotations, decorators, texts and what runs only under `__main__` or TYPE_CHECKING stay as they
are.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
    ast.Mod: "*",
}
_UNCHANGED_CONDITIONS = ("TYPE_CHECKING", "__name__ == '__main__'")
_SYMMETRIC = ("min", "max")
_MAX_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change of one module: `text` in place of its bytes from `start` to `end`."""

    path: str
    function: str
    line: int
    change: str
    start: int
    end: int
    text: str

    @property
    def name(self) -> str:
        """Return the name, which stays the same when other lines of the module change."""
        return f"{self.path} {self.function}: {self.change}"

    def applied(self, source: bytes) -> bytes:
        """Return the module with the change."""
        return source[: self.start] + self.text.encode() + source[self.end :]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Return every mutant of a module."""
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.found


class _Finder(ast.NodeVisitor):
    def __init__(self, path: str, source: str) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._source = source.encode()
        self._names: list[str] = []
        self._num_of_change: Counter[tuple[str, str]] = Counter()
        self._line_starts = [0]
        for line in self._source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr) or _is_main_guard(node):
            return  # Python 3.11 has no exact positions inside f-strings
        if isinstance(node, ast.expr | ast.stmt):
            for text in self._replacements(node):
                self._add(node, text)
        name = (
            node.name
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else None
        )
        self._names += [name] if name else []
        for child in _mutable_children(node):
            self.visit(child)
        if name:
            self._names.pop()

    def _add(self, node: ast.expr | ast.stmt, text: str) -> None:
        change = f"`{_shown(self._text(node))}` to `{_shown(text)}`"
        function = ".".join(self._names) or "module"
        self._num_of_change[function, change] += 1
        if (number := self._num_of_change[function, change]) > 1:
            change = f"{change} ({number})"
        start, end = self._span(node)
        self.found.append(Mutant(self._path, function, node.lineno, change, start, end, text))

    def _replacements(self, node: ast.expr | ast.stmt) -> Iterator[str]:
        if isinstance(node, ast.stmt):
            yield from self._statements(node)
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield self._joined([node.left, *node.comparators], _COMPARISONS[type(node.ops[0])])
        elif isinstance(node, ast.BoolOp):
            yield self._joined(node.values, "or" if isinstance(node.op, ast.And) else "and")
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            yield self._joined([node.left, node.right], _ARITHMETIC[type(node.op)])
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield f"({self._text(node.operand)})"
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield str(not node.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
            yield str(node.value + 1)
        elif isinstance(node, ast.Call):
            yield from self._swapped(node)
        elif isinstance(node, ast.IfExp) and not _is_negated_itself(node.test):
            parts = (self._text(part) for part in (node.body, node.test, node.orelse))
            yield "(({}) if not ({}) else ({}))".format(*parts)

    def _statements(self, node: ast.stmt) -> Iterator[str]:
        if isinstance(node, ast.If | ast.While) and not _is_negated_itself(node.test):
            self._add(node.test, f"(not ({self._text(node.test)}))")
        elif isinstance(node, ast.Return) and node.value is not None and not _is_falsy(node.value):
            yield "return None"
        elif isinstance(node, ast.Raise | ast.AugAssign) or _is_call(node) or _is_store(node):
            yield "pass"
        elif isinstance(node, ast.Break | ast.Continue):
            yield "continue" if isinstance(node, ast.Break) else "break"

    def _swapped(self, node: ast.Call) -> Iterator[str]:
        function = self._text(node.func)
        if len(node.args) < 2 or isinstance(node.args[0], ast.Starred) or function in _SYMMETRIC:
            return
        first, second, *others = [self._text(arg) for arg in node.args]
        if first == second:
            return
        words = [f"{word.arg}={self._text(word.value)}" for word in node.keywords if word.arg]
        yield f"{function}({', '.join([second, first, *others, *words])})"

    def _joined(self, nodes: list[ast.expr], operator: str) -> str:
        parts = (f"({self._text(node)})" for node in nodes)
        return f"({f' {operator} '.join(parts)})"

    def _text(self, node: ast.expr | ast.stmt) -> str:
        start, end = self._span(node)
        return self._source[start:end].decode()

    def _span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return the bytes of the source that are a node."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._line_starts[node.lineno - 1] + node.col_offset
        return start, self._line_starts[node.end_lineno - 1] + node.end_col_offset


def _mutable_children(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a node that are neither annotations nor decorators nor patterns."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "pattern"):
            continue
        parts = value if isinstance(value, list) else [value]
        yield from (part for part in parts if isinstance(part, ast.AST))


def _is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in _UNCHANGED_CONDITIONS


def _is_negated_itself(condition: ast.expr) -> bool:
    """Return True if a mutant of the condition's own expression is its negation."""
    if isinstance(condition, ast.Compare) and len(condition.ops) == 1:
        return isinstance(
            condition.ops[0], ast.Eq | ast.NotEq | ast.Is | ast.IsNot | ast.In | ast.NotIn
        )
    return isinstance(condition, ast.UnaryOp) and isinstance(condition.op, ast.Not)


def _is_falsy(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and not node.value


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await)


def _is_store(node: ast.stmt) -> bool:
    """Return True for an assignment to an attribute or an item: a removed variable fails by its
    name.
    """
    return isinstance(node, ast.Assign) and isinstance(
        node.targets[0], ast.Attribute | ast.Subscript
    )


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_SHOWN_CHARS else f"{line[: _MAX_SHOWN_CHARS - 3]}..."
