"""Updates the generated tables of README.md and docs/: `python -m docs.tables`.

The text between `<!-- table: NAME -->` and `<!-- end -->` is the value of `TABLES[NAME]`;
tests/test_docs.py checks it.
"""

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from service.settings import Settings, variable
from tasks.catalog import CatalogEntry, load_catalog
from tasks.table import TASKS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))

_CATALOG = ROOT / "models" / "catalog.yaml"
_EMBEDDED = ("florence-2-mini", "paligemma-mini")
_BENCH = ROOT / "laboratory" / "results" / "bench.md"
_BLOCK = re.compile(r"<!-- table: (?P<name>[\w -]+) -->\n.*?<!-- end -->", re.DOTALL)
_SECTION = re.compile(r"^##? (.+?)\n\n(.+?)\n(?=\n## |\Z)", re.DOTALL | re.MULTILINE)


def with_tables(text: str) -> str:
    """Return a page with all of its tables updated."""
    return _BLOCK.sub(
        lambda block: f"<!-- table: {block['name']} -->\n{TABLES[block['name']]()}\n<!-- end -->",
        text,
    )


def task_table(entries: Iterable[CatalogEntry]) -> str:
    """Return a Markdown table: a row a task, a column for each of `entries`, `yes` if offered."""
    models = list(entries)
    header = ["task", "parameters", *(entry.id for entry in models)]
    rows: list[list[str]] = []
    for task in TASKS.values():
        offered = ["yes" if task.id in entry.task_ids else "" for entry in models]
        # alternatives are joined by 'or', parameters with a default are in brackets
        alternatives = " or ".join(f"`{name}`" for name in task.exactly_one_of)
        required = [f"`{name}`" for name in task.required]
        optional = [f"[`{p.name}`]" for p in task.parameters if p.default is not None]
        parameters = ", ".join(filter(None, [alternatives, *required, *optional]))
        rows.append([f"`{task.id}`", parameters, *offered])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _sections(report: Path, *titles: str) -> str:
    """Return the sections of a report in Markdown."""
    sections = dict(_SECTION.findall(report.read_text(encoding="utf-8")))
    return "\n\n".join(sections[title] for title in titles)


def settings_table() -> str:
    """Return the table of settings in Markdown."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    schemas = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        default = field.default
        text = ",".join(default) if isinstance(default, tuple) else str(default)
        if isinstance(default, bool):
            text = text.lower()
        value = "unset" if default in (None, ()) else f"`{text}`"
        allowed = ""
        if "enum" in schemas[name]:
            allowed = f" One of {', '.join(schemas[name]['enum'])}."
        elif "minimum" in schemas[name]:
            allowed = f" {schemas[name]['minimum']} to {schemas[name]['maximum']}."
        meaning = schemas[name]["description"]
        rows.append(f"| `{variable(name)}` | {value} | {meaning}{allowed} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "tasks": lambda: task_table(load_catalog(_CATALOG)[name] for name in _EMBEDDED),
    "settings": settings_table,
    "bench": lambda: _sections(_BENCH, "Ours ÷ best peer"),
    "bench facts": lambda: _sections(_BENCH, "Bench"),
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
