"""The requests, calls and commands of README.md and docs/ are run, and give the results that the
pages show.

bash, then json    a curl command and its answer
python, then text  a program and what it prints
sh, then text      commands of the client and what they print; text may be missing
"""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from docs.tables import PAGES
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
    """A block of a page and the output that the page shows, empty for none."""

    page: str
    language: str
    code: str
    shown: str


BLOCKS: list[Block] = []
for _page in PAGES:
    for _language, _code, _, _shown in _BLOCK.findall(_page.read_text(encoding="utf-8")):
        BLOCKS.append(Block(_page.name, _language, _code, _shown))


def blocks(language: str) -> pytest.MarkDecorator:
    found = [block for block in BLOCKS if block.language == language]
    names = [f"{block.page}-{number}" for number, block in enumerate(found)]
    return pytest.mark.parametrize("block", found, ids=names)


@blocks("bash")
def test_a_request_gets_the_answer_that_the_page_shows(
    service: RunningService, tmp_path: Path, block: Block
) -> None:
    words = shlex.split(adapted(block.code, service, tmp_path))
    assert words[0] == "curl"
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    if block.shown:
        assert without_varying(json.loads(run.stdout)) == without_varying(json.loads(block.shown))
    elif "stream=true" in block.code:
        assert [name for name, _ in parse_events(run.stdout)][-2:] == ["token", "result"]
    else:
        assert '"error":' not in run.stdout
        assert json.loads(run.stdout)


@blocks("python")
def test_a_program_prints_what_the_page_shows(
    service: RunningService, tmp_path: Path, block: Block
) -> None:
    quiet = "-Wignore:OpenCV"  # supervision warns at its import that it runs without
    command = [sys.executable, quiet, "-c", adapted(block.code, service, tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (block.shown, "")


@blocks("sh")
def test_commands_succeed_and_print_what_the_page_shows(
    service: RunningService, tmp_path: Path, block: Block
) -> None:
    lines = adapted(block.code, service, tmp_path).splitlines()
    printed = "".join(run_command(line, service) for line in lines)
    assert printed
    if block.shown:
        assert without_times(printed, tmp_path) == without_times(block.shown, tmp_path)


def test_there_are_requests_and_programs_on_the_pages() -> None:
    assert {"README.md", "api.md"} <= {block.page for block in BLOCKS if block.language == "bash"}
    assert {"README.md", "api.md"} <= {block.page for block in BLOCKS if block.language == "python"}


def without_varying(value: Any) -> Any:
    """Return JSON without what differs from run to run, numbers to three places."""
    if isinstance(value, dict):
        return {name: without_varying(each) for name, each in value.items() if name not in _VARYING}
    if isinstance(value, list):
        return [without_varying(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


def adapted(code: str, service: RunningService, tmp_path: Path) -> str:
    """Return code with the test's service and folder in place of the page's, which are the client's
    defaults.
    """
    code = code.replace("localhost:3001", service.grpc_address).replace("/tmp/", f"{tmp_path}/")
    code = re.sub(r"\bClient\((?=\)|\w+=)", f'Client("{service.url}", ', code)
    return code.replace("localhost:3000", service.url.removeprefix("http://"))


def run_command(line: str, service: RunningService) -> str:
    """Run a command of the client against the service and return what it prints."""
    program, *words = shlex.split(line)
    assert program == _CLIENT.name, f"{line!r} is not a command of the client"
    url = [] if "--url" in words else ["--url", service.url]
    run = subprocess.run(
        [str(_CLIENT), *url, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return run.stdout


def without_times(text: str, tmp_path: Path) -> str:
    text = text.replace(f"{tmp_path}/", "/tmp/").replace("\n", "")  # a long path breaks lines
    return re.sub(r"[\d.]+ (ms|s|images/s)\b", r"… \1", text)
