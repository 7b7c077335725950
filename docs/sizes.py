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
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        if not path.startswith("tests/"):
            importers.update(names)
    return importers


def error_classes(modules: dict[str, ast.Module]) -> set[str]:
    """Return the names of all classes that descend from an exception."""
    bases = dict[str, set[str]]()
    for tree in modules.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).rpartition(".")[2] for base in node.bases}

    def is_error(name: str) -> bool:
        parents = bases.get(name, set())
        return any(parent.endswith(("Error", "Exception")) for parent in parents) or any(
            map(is_error, parents)
        )

    return set(filter(is_error, bases))


def counts(tree: ast.Module, errors: set[str]) -> Counter[str]:
    """Count what the table shows of one module beside its lines and importers."""
    counter = Counter[str]()
    for node in ast.walk(tree):
        counter["vague names"] += is_vague(node)
        counter["comprehensions"] += isinstance(node, _COMPREHENSIONS)
        counter["errors"] += isinstance(node, ast.ClassDef) and node.name in errors
        if isinstance(node, _FUNCTIONS):
            counter["over 30 lines"] += (node.end_lineno or 0) - node.lineno >= 30
    return counter


def is_vague(node: ast.AST) -> bool:
    name = ""
    if isinstance(node, ast.arg):
        name = node.arg
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        name = node.id if isinstance(node, ast.Name) else node.attr
    return name.lstrip("_") in VAGUE_NAMES


def row(name: str, room: Counter[str]) -> str:
    thousands = room["lines"] / 1000
    values = {column: str(room[column]) for column in COLUMNS}
    for column in ("vague names", "comprehensions"):
        values[column] = f"{room[column] / thousands:.1f}"
    return f"| {name} | {' | '.join(values.values())} |"


def num_words() -> int:
    """Count the words of all pages, as `wc -w` does."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    return sum(len(page.read_text(encoding="utf-8").split()) for page in pages)


if __name__ == "__main__":
    main()
