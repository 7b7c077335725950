"""Asks `python -m export.bench.steps` how long a decode step takes, by itself and in the scheduler."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loadtest.servers import ROOT

_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Mean times of a step of `num_sequences` sequences, one thread."""

    model: str
    num_sequences: int
    num_steps: int
    step_s: float  # from token to token, as a client of the scheduler sees it
    model_s: float  # of these in the model

    @property
    def overhead(self) -> float:
        """Share of a step that is not the model: choosing tokens, rules, the scheduler itself."""
        return 1 - self.model_s / self.step_s


def measure_steps(model_id: str, folder: Path) -> tuple[StepTimes, ...]:
    """Run the command on a model of the bench's store."""
    run = subprocess.run(
        [sys.executable, "-m", "export.bench.steps", model_id],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_TIMEOUT_S,
        check=True,
    )
    return tuple(StepTimes(**row) for row in json.loads(run.stdout))
