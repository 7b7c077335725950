"""The card of the tests, a real one or the fake CUDA runtime, and the processes of scenarios.

A scenario is a function of a module of tests: it receives a `Model` and texts, and returns JSON.
It runs in a process of its own, which it may end, fill or hang:
`python -m tests.gpu.card MODULE:SCENARIO MODEL TEXT…` prints its result.
"""

import faulthandler
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from tests.support.export_cli import ROOT, environment_with

_LIMIT_S = 900  # of a scenario, which then prints its stacks


@dataclass(frozen=True, slots=True)
class Card:
    """Where scenarios run, and the store of their models."""

    is_real: bool
    python: Path  # with torch and ONNX Runtime for CUDA
    home: Path  # BentoML's
    variables: Mapping[str, str] = field(default_factory=dict)

    def start(
        self, scenario: Callable[..., Any], *arguments: str, **settings: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a scenario to its end; the first argument is the id of its model."""
        name = f"{scenario.__module__}:{scenario.__name__}"
        command = [str(self.python), "-m", "tests.gpu.card", name, *arguments]
        environment = environment_with(self.home, **{**self.variables, **settings})
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )

    def run(self, scenario: Callable[..., Any], *arguments: str, **settings: str) -> Any:
        """Return the result of a scenario, which must succeed."""
        run = self.start(scenario, *arguments, **settings)
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    """Print the result of a scenario."""
    from tests.gpu.models import Model  # imports torch

    faulthandler.enable()
    faulthandler.dump_traceback_later(_LIMIT_S, exit=True)
    name, model_id, *arguments = sys.argv[1:]
    print(json.dumps(resolve_name(name)(Model.of(model_id), *arguments)))


if __name__ == "__main__":
    main()
