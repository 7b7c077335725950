"""The README's table of tasks and models, made from the task table and the catalog."""

from collections.abc import Iterable

from tasks.catalog import CatalogEntry
from tasks.table import TASKS


def task_table_markdown(entries: Iterable[CatalogEntry]) -> str:
    """Return a Markdown table: a row for each task, a column for each of `entries`, `yes` where the model offers it."""
    models = list(entries)
    header = ["task", "parameters", *(entry.id for entry in models)]
    rows = [
        [f"`{task.id}`", _parameters(task.id), *("yes" if task.id in entry.task_ids else "" for entry in models)]
        for task in TASKS.values()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, ["---"] * len(header), *rows])


def _parameters(task_id: str) -> str:
    """Return the parameters, those of which one is needed joined by 'or', those with a default in brackets."""
    task = TASKS[task_id]
    alternatives = " or ".join(f"`{name}`" for name in task.exactly_one_of)
    optional = [f"[`{p.name}`]" for p in task.parameters if p.default is not None]
    return ", ".join(part for part in [alternatives, *(f"`{name}`" for name in task.required), *optional] if part)
