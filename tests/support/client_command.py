"""The command `diptych` as `make test` installs it, beside the Python that runs the
tests.
"""

import subprocess
import sys
from pathlib import Path

from tests.support.running_service import RunningService

DIPTYCH = str(Path(sys.executable).with_name("diptych"))


def command(service: RunningService, *arguments: str | Path) -> list[str]:
    return [DIPTYCH, "--url", service.url, *map(str, arguments)]


def run(
    service: RunningService, *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    words = command(service, *arguments)
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
