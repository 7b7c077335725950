"""The blocks of README.md are run, and give what it shows: a curl command and the JSON of its
answer, a program and what it prints.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService

BLOCK = re.compile(
    r"^```(bash|python)\n(.*?)^```\n\n```(?:json|text)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
VARYING = {"id", "request_id", "timings_ms", "vision_cache"}


def run(*command: str) -> str:
    """Return what a program prints in the repository, where it prints no warning."""
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(
    ("language", "code", "output"), BLOCKS, ids=[language for language, *_ in BLOCKS]
)
def test_block_prints_what_the_readme_shows(
    service: RunningService, tmp_path: Path, language: str, code: str, output: str
) -> None:
    code = adapted(code, service, tmp_path)
    if language == "python":
        assert run(sys.executable, "-c", code) == output
    else:
        printed = run("curl", "--silent", *shlex.split(code)[1:])
        assert without_varying(json.loads(printed)) == without_varying(json.loads(output))


def test_readme_has_a_request_and_a_program() -> None:
    assert [language for language, *_ in BLOCKS] == ["bash", "python"]


def adapted(code: str, service: RunningService, folder: Path) -> str:
    """Return code with the test's service and folder in place of the page's, which are the client's
    defaults.
    """
    code = code.replace("localhost:3001", service.grpc_address).replace("/tmp/", f"{folder}/")
    code = re.sub(r"\bClient\((?=\)|\w+=)", f'Client("{service.url}", ', code)
    return code.replace("localhost:3000", service.url.removeprefix("http://"))


def without_varying(value: Any) -> Any:
    """Return JSON without what differs from run to run, numbers to three places."""
    if isinstance(value, dict):
        return {name: without_varying(item) for name, item in value.items() if name not in VARYING}
    if isinstance(value, list):
        return [without_varying(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
