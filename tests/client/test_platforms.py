"""Other systems than Linux: the client uses only names that Python has there."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT


@pytest.mark.long
@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_no_name_of_another_system_is_used(tmp_path: Path, platform: str) -> None:
    command = [sys.executable, "-m", "mypy", "--platform", platform, "--cache-dir", str(tmp_path)]
    run = subprocess.run(
        [*command, "client/diptych_client"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout
