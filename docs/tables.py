"""Writes the generated tables of README.md and docs/: `python -m docs.tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` and is the value of `TABLES[NAME]`. tests/test_docs.py
fails for a page whose table differs.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

from export.memory import memory_tables
from service.settings import settings_table
from tasks.catalog import load_catalog
from tasks.table_markdown import task_table_markdown

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))

_EMBEDDED = ("florence-2-mini", "paligemma-mini")
_RESULTS = ROOT / "loadtest" / "results"
_BLOCK = re.compile(r"<!-- table: (?P<name>[\w -]+) -->\n.*?<!-- end -->", re.DOTALL)
_SECTION = re.compile(r"^##? (.+?)\n\n(.+?)\n(?=\n## |\Z)", re.DOTALL | re.MULTILINE)
# The rows of the bench that README.md shows; docs/benchmarks.md has the others, so that a figure stands in one place.
_HEADLINES = ("| (a) mixed ", "| (d) single ")
_HEADLINE_MEASURE = "| tokens/s |"


def with_tables(text: str) -> str:
    """Return a page with all of its tables written again."""
    return _BLOCK.sub(lambda block: f"<!-- table: {block['name']} -->\n{TABLES[block['name']]()}\n<!-- end -->", text)


def _tasks() -> str:
    catalog = load_catalog(ROOT / "models" / "catalog.yaml")
    return task_table_markdown(catalog[model_id] for model_id in _EMBEDDED).rstrip()


def _sections(path: str) -> dict[str, str]:
    return dict(_SECTION.findall((_RESULTS / path).read_text(encoding="utf-8")))


def _bench(title: str) -> Callable[[], str]:
    return lambda: _sections("bench.md")[title]


def _ratios(is_headline: bool) -> Callable[[], str]:
    def rows() -> str:
        header, line, *rows = _bench("Ours ÷ best peer")().splitlines()
        return "\n".join([header, line, *(row for row in rows if _is_headline(row) == is_headline)])

    return rows


def _is_headline(row: str) -> bool:
    return row.startswith(_HEADLINES) or _HEADLINE_MEASURE in row


def _load() -> str:
    sections = _sections("load/load.md")
    return "\n\n".join(sections[title] for title in ("Load", "Saturation", "Offered and answered", "Tasks"))


TABLES: dict[str, Callable[[], str]] = {
    "tasks": _tasks,
    "settings": settings_table,
    "memory": memory_tables,
    "bench headlines": _ratios(is_headline=True),
    "bench facts": _bench("Bench"),
    "bench others": _ratios(is_headline=False),
    "bench limit": _bench("The limit"),
    "bench stages": _bench("Where the time of a request goes, mean ms"),
    "load": _load,
}


def main() -> int:
    """Write all pages; return the exit status."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
