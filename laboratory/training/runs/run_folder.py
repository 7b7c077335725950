"""The folder of a run: its state, from which it resumes, and its log.

state.pt     weights, optimizers and the next step
log.jsonl    one line per logged step (losses, rate) and per validation (accuracies)
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


@dataclass(frozen=True, slots=True)
class RunFolder:
    """State and log of one run."""

    path: Path

    def save(
        self, step: int, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer]
    ) -> None:
        """Store the state before `step` atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        state = {
            "step": step,
            "modules": [module.state_dict() for module in modules],
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        }
        unfinished = self.path / "state.unfinished"
        torch.save(state, unfinished)
        unfinished.replace(self.path / "state.pt")

    def restore(self, modules: Sequence[nn.Module], optimizers: Sequence[Optimizer] = ()) -> int:
        """Load the state into modules and optimizers; return the next step, or 0 without one."""
        file = self.path / "state.pt"
        if not file.exists():
            return 0
        state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        for module, values in zip(modules, state["modules"], strict=False):
            module.load_state_dict(values)
        for optimizer, values in zip(optimizers, state["optimizers"], strict=False):
            optimizer.load_state_dict(values)
        return int(state["step"])

    def log(self, row: Mapping[str, float]) -> None:
        """Append a line to the log."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({name: round(value, 5) for name, value in row.items()}) + "\n")

    def rows(self) -> list[dict[str, float]]:
        """Return the lines of the log without those that a resumed run has repeated."""
        rows: list[dict[str, float]] = []
        for line in (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines():
            row: dict[str, float] = json.loads(line)
            while rows and rows[-1]["step"] > row["step"]:
                rows.pop()
            rows.append(row)
        return rows
