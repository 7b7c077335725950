"""Prints the size of the repository, a row for each room: `python -m docs.sizes`.

Lines are those of `wc -l` over Python files, generated code left out. A module is lone if one
other module outside tests imports it. Vague names and comprehensions are of 1,000 lines.
"""

import ast
import subprocess
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = ("lines", "modules", "lone", "vague names", "comprehensions", "errors", "over 30 lines")
_VAGUE = (
    "asked chosen each found given held how kept made meant named own said seen shown wanted what"
)
VAGUE_NAMES = frozenset(_VAGUE.split())
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    """Print the table, its sum, the row of tests, and the words of the pages."""
    modules = parsed_modules()
    importers = num_importers(modules)
    errors = error_classes(modules)
    rooms = dict[str, Counter[str]]()
    for path, tree in modules.items():
        room = rooms.setdefault(path.partition("/")[0], Counter())
        room.update(counts(tree, errors))
        room["lines"] += (ROOT / path).read_text(encoding="utf-8").count("\n")
        room["modules"] += 1
        room["lone"] += importers[module_name(path)] == 1
    tests = rooms.pop("tests")
    print(f"| room | {' | '.join(COLUMNS)} |", "|---" + "|---:" * len(COLUMNS) + "|", sep="\n")
    for name, room in sorted(rooms.items(), key=lambda item: -item[1]["lines"]):
        print(row(name, room))
    print(row("**sum**", sum(rooms.values(), Counter())), row("tests", tests), sep="\n")
    print(f"\n{num_words()} words in the pages")


def parsed_modules() -> dict[str, ast.Module]:
    """Return the tree of every Python file that is neither generated nor a link, by its path."""
    command = ["git", "ls-files", "*.py"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = dict[str, ast.Module]()
    for path in listing.stdout.splitlines():
        file = ROOT / path
        if "_pb2" in path or not file.is_file() or file.is_symlink():
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if "Do not edit" not in (ast.get_docstring(tree) or ""):
            modules[path] = tree
    return modules


def module_name(path: str) -> str:
    return path.removeprefix("client/").removesuffix(".py").replace("/", ".")


def num_importers(modules: dict[str, ast.Module]) -> Counter[str]:
    """Count the modules outside tests that import each module."""
    importers = Counter[str]()
    for path, tree in modules.items():
        names = set[str]()
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            package = getattr(node, "module", None)
            for alias in node.names:
                names |= {package, f"{package}.{alias.name}"} if package else {alias.name}
        if not path.startswith("tests/"):
            importers.update(names)
    return importers


def error_classes(modules: dict[str, ast.Module]) -> set[str]:
    """Return the names of all classes that descend from an exception."""
    bases = dict[str, list[str]]()
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = list(map(ast.unparse, node.bases))

    def is_error(name: str) -> bool:
        for base in bases.get(name, ()):
            parent = base.rpartition(".")[2]
            if parent.endswith(("Error", "Exception")) or is_error(parent):
                return True
        return False

    return set(filter(is_error, bases))


def counts(tree: ast.Module, errors: set[str]) -> Counter[str]:
    """Count what the table shows of one module beside its lines and importers."""
    counter = Counter[str]()
    for node in ast.walk(tree):
        counter["vague names"] += name_of(node).lstrip("_") in VAGUE_NAMES
        counter["comprehensions"] += isinstance(node, _COMPREHENSIONS)
        counter["errors"] += isinstance(node, ast.ClassDef) and node.name in errors
        if isinstance(node, _FUNCTIONS):
            counter["over 30 lines"] += (node.end_lineno or 0) - node.lineno >= 30
    return counter


def name_of(node: ast.AST) -> str:
    """Return the name that a node gives to an argument, a variable or an attribute."""
    if isinstance(node, ast.arg):
        return node.arg
    if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        return node.id if isinstance(node, ast.Name) else node.attr
    return ""


def row(name: str, room: Counter[str]) -> str:
    thousands = room["lines"] / 1000
    values = {column: str(room[column]) for column in COLUMNS}
    for column in ("vague names", "comprehensions"):
        values[column] = f"{room[column] / thousands:.1f}"
    return f"| {name} | {' | '.join(values.values())} |"


def num_words() -> int:
    """Count the words of all pages, as `wc -w` does."""
    num = 0
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        num += len(page.read_text(encoding="utf-8").split())
    return num


if __name__ == "__main__":
    main()
