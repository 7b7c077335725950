"""Recipes of `diptych analyze`: YAML files of steps, some of which the client ships.

`labels: given` are those of the command line, `models: all` the models that offer the step's task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from diptych_client.long_runs import RunError
from diptych_client.results import Task

_SHIPPED = files("diptych_client") / "recipes"
_MAX_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps as a file has them."""

    name: str
    description: str
    steps: tuple[dict[str, Any], ...]

    def filled(self, labels: Sequence[str], tasks: Sequence[Task]) -> list[dict[str, Any]]:
        """Return the steps for a request; raise `RunError` if labels are missing."""
        models = {task.id: list(task.models) for task in tasks}
        steps = []
        for step in self.steps:
            filled = dict(step)
            if filled.get("labels") == "given":
                if not labels:
                    raise RunError(f"the recipe {self.name} needs labels: give --label for each")
                filled["labels"] = list(labels)
            if filled.get("models") == "all":
                filled["models"] = models.get(str(step.get("task")), [])
            steps.append(filled)
        return steps


def shipped_recipes() -> list[Recipe]:
    """Return the recipes of the client, by name."""
    paths = sorted(_SHIPPED.iterdir(), key=lambda path: path.name)
    return [
        _parsed(path.name.removesuffix(".yaml"), path.read_text(encoding="utf-8"))
        for path in paths
        if path.name.endswith(".yaml")
    ]


def read_recipe(name_or_path: str) -> Recipe:
    """Return a recipe of the client, or that in a file; raise `RunError`."""
    shipped = {recipe.name: recipe for recipe in shipped_recipes()}
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        names = ", ".join(shipped)
        raise RunError(f"there is no recipe or file {name_or_path!r:.200}; the recipes are {names}")
    if path.stat().st_size > _MAX_BYTES:
        raise RunError(f"the recipe {path} is larger than {_MAX_BYTES} bytes")
    return _parsed(path.name, path.read_text(encoding="utf-8"))


def _parsed(name: str, text: str) -> Recipe:
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise RunError(f"the recipe {name} is not YAML: {error}") from error
    steps = document.get("steps") if isinstance(document, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise RunError(f"the recipe {name} must have steps: a list of objects")
    return Recipe(name, str(document.get("description", "")), tuple(steps))
