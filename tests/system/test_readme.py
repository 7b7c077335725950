"""The requests, calls and commands of README.md are run, and give the results that it shows.

bash, then json    a curl command and its answer
python, then text  a program and what it prints
sh, then text      commands of the client and what they print; text may be missing
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.support.server_sent_events import parse_events

_BLOCK = re.compile(
    r"^```(bash|python|sh)\n(.*?)^```\n(?:\n```(json|text)\n(.*?)^```)?", re.DOTALL | re.MULTILINE
)
_VARYING = {"id", "request_id", "timings_ms", "vision_cache"}
_CLIENT = Path(sys.executable).with_name("diptych")  # the command of the package in client/


@dataclass(frozen=True, slots=True)
class Block:
    """A block and the output below it, empty for none."""

    language: str
    code: str
    output: str


README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [Block(language, code, output) for language, code, _, output in _BLOCK.findall(README)]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("block", BLOCKS, ids=[block.language for block in BLOCKS])
def test_block_prints_what_the_readme_shows(
    service: RunningService, tmp_path: Path, block: Block
) -> None:
    check(block, service, tmp_path, run_here)


def run_here(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of this environment in the repository."""
    path = {"diptych": str(_CLIENT), "python": sys.executable}.get(program, program)
    return subprocess.run([path, *words], cwd=ROOT, capture_output=True, text=True)


def check(block: Block, service: RunningService, folder: Path, run: Run) -> None:
    """Raise unless a block, run by `run`, prints the output below it."""
    code = adapted(block.code, service, folder)
    match block.language:
        case "python":
            # supervision warns at its import that it runs without OpenCV
            ran = run("python", "-Wignore:OpenCV", "-c", code)
            assert (ran.stdout, ran.stderr) == (block.output, "")
        case "bash":
            check_answer(block, printed_by(run, code, "curl"))
        case "sh":
            lines = code.splitlines()
            printed = "".join(printed_by(run, line, "diptych", service) for line in lines)
            assert printed
            if block.output:
                assert without_times(printed, folder) == without_times(block.output, folder)


def printed_by(run: Run, line: str, expected: str, service: RunningService | None = None) -> str:
    """Run a command and return what it prints; the client's calls `service`."""
    program, *words = shlex.split(line)
    assert program == expected, f"{line!r} is not a command of {expected}"
    url = ["--url", service.url] if service and "--url" not in words else []
    ran = run(program, *url, *words)
    assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def check_answer(block: Block, printed: str) -> None:
    if block.output:
        assert without_varying(json.loads(printed)) == without_varying(json.loads(block.output))
    elif "stream=true" in block.code:
        assert [name for name, _ in parse_events(printed)][-2:] == ["token", "result"]
    else:
        assert '"error":' not in printed
        assert json.loads(printed)


def test_readme_has_a_request_and_a_program() -> None:
    assert {"bash", "python"} <= {block.language for block in BLOCKS}


def without_varying(value: Any) -> Any:
    """Return JSON without what differs from run to run, numbers to three places."""
    if isinstance(value, dict):
        return {name: without_varying(item) for name, item in value.items() if name not in _VARYING}
    if isinstance(value, list):
        return [without_varying(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def adapted(code: str, service: RunningService, tmp_path: Path) -> str:
    """Return code with the test's service and folder in place of the page's, which are the client's
    defaults.
    """
    code = code.replace("localhost:3001", service.grpc_address).replace("/tmp/", f"{tmp_path}/")
    code = re.sub(r"\bClient\((?=\)|\w+=)", f'Client("{service.url}", ', code)
    return code.replace("localhost:3000", service.url.removeprefix("http://"))


def without_times(text: str, tmp_path: Path) -> str:
    text = text.replace(f"{tmp_path}/", "/tmp/").replace("\n", "")  # a long path breaks lines
    return re.sub(r"[\d.]+ (ms|s|images/s)\b", r"… \1", text)
