"""The command `diptych` that `make test` installs, and its `main` called in this process."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from diptych_client.tools.cli import main
from tests.support.running_service import RunningService

DIPTYCH = str(Path(sys.executable).with_name("diptych"))


def command(service: RunningService, *arguments: str | Path) -> list[str]:
    return [DIPTYCH, "--url", service.url, *map(str, arguments)]


def run(service: RunningService, *arguments: str | Path) -> CompletedProcess[str]:
    """Call `main` with the service's URL; a process would import for half a second."""
    words = command(service, *arguments)
    with (
        mock.patch.object(sys, "argv", words),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
        pytest.raises(SystemExit) as ended,
    ):
        main()
    return CompletedProcess(words, int(ended.value.code or 0), stdout.getvalue(), stderr.getvalue())
