"""Separate environments for tools whose pinned packages differ from ours."""

import subprocess
import sys
from pathlib import Path

from tests.support.export_cli import ROOT


def tool_python(tool: str) -> Path:
    """Return the Python of build/TOOL with requirements-TOOL.txt, which are installed if they are
    not yet.
    """
    environment = ROOT / "build" / tool
    python = environment / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    requirements = ROOT / f"requirements-{tool}.txt"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "-r", requirements], cwd=ROOT, check=True
    )
    return python
