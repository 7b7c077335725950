"""Separate environments for tools whose pinned packages differ from ours."""

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.support.export_cli import ROOT


def dependency_group(name: str) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return list(project["dependency-groups"][name])


def tool_python(tool: str, *beside: str) -> Path:
    """Return the Python of build/TOOL, with its dependency group and `beside` installed by pip."""
    environment = ROOT / "build" / tool
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", *dependency_group(tool), *beside]
    subprocess.run(pip, cwd=ROOT, check=True)
    return python
