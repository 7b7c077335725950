"""The export as a user runs it, model stores, and a small disk."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.forked_python import run as run_forked

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
EMBEDDED = ("florence-2-mini", "paligemma-mini")
_TIMEOUT_S = 600


def environment_with(bentoml_home: Path, **variables: str) -> dict[str, str]:
    home = {"BENTOML_HOME": str(bentoml_home), "BENTOML_DO_NOT_TRACK": "True"}
    return os.environ | home | variables


@dataclass(frozen=True, slots=True)
class ModelStore:
    """A BentoML home, and what is in its model store."""

    home: Path
    prefix: tuple[str, ...] = ()  # words before the export's own

    def export(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m export` to its end, forked where no import reads `environment`."""
        needs_start = self.prefix or any(name.startswith("HF_") for name in environment)
        start = self.python if needs_start else self.forked
        return start("-m", "export", *arguments, **environment)

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.prefix, sys.executable, *arguments],
            cwd=ROOT,
            env=environment_with(self.home, **environment),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )

    def forked(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        assert not self.prefix
        return run_forked(arguments, environment_with(self.home, **environment), _TIMEOUT_S)

    def versions(self, model_id: str) -> list[Path]:
        return [path.parent for path in (self.home / "models" / model_id).glob("*/model.yaml")]

    def newest(self, model_id: str) -> Path:
        folder = self.home / "models" / model_id
        return folder / (folder / "latest").read_text(encoding="utf-8").strip()

    def add_newest(self, model_id: str, store: "ModelStore") -> None:
        if (store.home / "models" / model_id / "latest").exists():
            version = store.newest(model_id)
            shutil.copytree(version, self.home / "models" / model_id / version.name)
            shutil.copy(version.parent / "latest", self.home / "models" / model_id)
