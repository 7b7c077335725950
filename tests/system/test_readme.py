"""The blocks of README.md are run, and give what it shows: a curl command and the JSON of its
answer, a program and what it prints.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.system.test_answers import without_varying

BLOCK = re.compile(
    r"^```(bash|python)\n(.*?)^```\n\n```(?:json|text)\n(.*?)^```", re.DOTALL | re.MULTILINE
)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


def output(*command: str) -> str:
    """Return what a program prints in the repository, where it prints no warning."""
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_blocks_print_what_the_readme_shows(service: RunningService, tmp_path: Path) -> None:
    (bash, request, answer), (python, program, text) = BLOCKS
    assert (bash, python) == ("bash", "python")
    printed = output("curl", "--silent", *shlex.split(adapted(request, service, tmp_path))[1:])
    assert without_varying(json.loads(printed)) == without_varying(json.loads(answer))
    assert output(sys.executable, "-c", adapted(program, service, tmp_path)) == text


def adapted(code: str, service: RunningService, folder: Path) -> str:
    """Return code with the test's service and folder in place of the page's, which are the client's
    defaults.
    """
    code = code.replace("localhost:3001", service.grpc_address).replace("/tmp/", f"{folder}/")
    code = re.sub(r"\bClient\((?=\)|\w+=)", f'Client("{service.url}", ', code)
    return code.replace("localhost:3000", service.url.removeprefix("http://"))
