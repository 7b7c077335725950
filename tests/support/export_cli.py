"""The export as a user runs it: `python -m export` in its own process, with a model store of its own."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
EMBEDDED = ("florence-2-mini", "paligemma-mini")


@dataclass(frozen=True, slots=True)
class ModelStore:
    """A BentoML home, and what is in its model store."""

    home: Path

    def export(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m export` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "export", *arguments],
            cwd=ROOT,
            env=os.environ | {"BENTOML_HOME": str(self.home), "BENTOML_DO_NOT_TRACK": "True"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def versions(self, model_id: str) -> list[Path]:
        """Return the folders of all stored versions of a model."""
        return [path.parent for path in (self.home / "models" / model_id).glob("*/model.yaml")]

    def newest(self, model_id: str) -> Path:
        """Return the folder of the newest version of a model."""
        folder = self.home / "models" / model_id
        return folder / (folder / "latest").read_text(encoding="utf-8").strip()
