"""Updates the generated tables of README.md and docs/: `python -m docs.tables`.

The text between `<!-- table: NAME -->` and `<!-- end -->` is the value of `TABLES[NAME]`;
tests/test_docs.py checks it.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np

from diptych_client.tools.statistics import log_wealth
from service.settings import Settings, variable
from tasks.catalog import load_catalog
from tasks.table import TASKS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md")))

_MAX_LABELLED = 4000
_NUM_DRAWS = 51
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


def labelled_images_table() -> str:
    rows = []
    for max_labels, share in product((1, 4), (0.1, 0.05, 0.02)):
        row = ["1" if max_labels == 1 else "0 to 4", f"{100 * share:.0f} %"]
        for part in (0.0, 0.2, 0.5):
            row.append(str(_num_labelled(max_labels, share, part * share)))
        rows.append(row)
    header = ["labels in an image", "at most wrong", "none is wrong", "a fifth of that is wrong"]
    return _table([*header, "half of that is wrong"], rows)


def _num_labelled(max_labels: int, share: float, share_wrong: float) -> int:
    """Return how many images prove, in three of four draws, that all labels may be accepted.

    The labels of an image are wrong together. Half of the error level starts with all labels.
    """
    rng = np.random.default_rng(0)
    counts = rng.integers(max_labels == 1, max_labels + 1, size=(_MAX_LABELLED, _NUM_DRAWS))
    excesses = counts * ((rng.random(counts.shape) < share_wrong) - share)
    highest = np.full(_NUM_DRAWS, max_labels * (1 - share))

    def wealth(num_images: int) -> float:
        wealths = log_wealth(excesses[:num_images], highest)
        return float(np.quantile(wealths, 0.25))

    return bisect_left(range(_MAX_LABELLED), -math.log(0.05 / 2), key=wealth)


TABLES: dict[str, Callable[[], str]] = {
    "tasks": task_table,
    "settings": settings_table,
    "bench": lambda: _bench("Ours ÷ best peer"),
    "labelled images": labelled_images_table,
    "bench facts": lambda: _bench("Bench"),
}


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
