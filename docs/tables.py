"""Updates the generated tables of README.md and docs/: `python -m docs.tables`.

The text between `<!-- table: NAME -->` and `<!-- end -->` is the value of `TABLES[NAME]`;
tests/test_docs.py checks it.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from service.settings import Settings, variable
from tasks.catalog import load_catalog
from tasks.table import TASKS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))

_CATALOG = ROOT / "models" / "catalog.yaml"
_EMBEDDED = ("florence-2-mini", "paligemma-mini")
_BENCH = ROOT / "laboratory" / "results" / "bench.md"
_BLOCK = re.compile(r"(<!-- table: ([\w -]+) -->)\n.*?<!-- end -->", re.DOTALL)
_SECTION = re.compile(r"^##? (.+?)\n\n(.+?)\n(?=\n## |\Z)", re.DOTALL | re.MULTILINE)


def with_tables(text: str) -> str:
    """Return a page with all of its tables updated."""
    return _BLOCK.sub(lambda block: f"{block[1]}\n{TABLES[block[2]]()}\n<!-- end -->", text)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for cells in rows:
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def task_table() -> str:
    """Return a row for each task, with its parameters, and whether the embedded models offer it.

    Alternatives are joined by 'or', parameters with a default are in brackets.
    """
    catalog = load_catalog(_CATALOG)
    rows = []
    for task in TASKS.values():
        parameters = [" or ".join(map("`{}`".format, task.exactly_one_of))]
        parameters += map("`{}`".format, task.required)
        for parameter in task.parameters:
            if parameter.default is not None:
                parameters.append(f"[`{parameter.name}`]")
        row = [f"`{task.id}`", ", ".join(filter(None, parameters))]
        for model in _EMBEDDED:
            row.append("yes" if task.id in catalog[model].task_ids else "")
        rows.append(row)
    return _table(["task", "parameters", *_EMBEDDED], rows)


def settings_table() -> str:
    rows = []
    schemas = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        schema = schemas[name]
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        if isinstance(default, bool):
            text = text.lower()
        value = "unset" if default in (None, ()) else f"`{text}`"
        meaning = schema["description"]
        if "enum" in schema:
            meaning += f" One of {', '.join(schema['enum'])}."
        elif "minimum" in schema:
            meaning += f" {schema['minimum']} to {schema['maximum']}."
        rows.append([f"`{variable(name)}`", value, meaning])
    return _table(["variable", "default", "meaning"], rows)


def _bench(title: str) -> str:
    sections: dict[str, str] = dict(_SECTION.findall(_BENCH.read_text(encoding="utf-8")))
    return sections[title]


TABLES: dict[str, Callable[[], str]] = {
    "tasks": task_table,
    "settings": settings_table,
    "bench": lambda: _bench("Ours ÷ best peer"),
    "bench facts": lambda: _bench("Bench"),
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
