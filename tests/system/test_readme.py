"""What the README shows is what happens: its requests are sent, its tables are made anew."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import settings_table
from tasks.catalog import load_catalog
from tasks.table_markdown import task_table_markdown
from tests.support.client_command import run
from tests.support.export_cli import EMBEDDED, MODELS, ROOT
from tests.support.running_service import RunningService
from tests.support.server_sent_events import parse_events

README = (ROOT / "README.md").read_text(encoding="utf-8")
CALLS = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"```bash\n(.*?)```\n(?:\n```json\n(.*?)```)?", README, re.DOTALL)
COMMANDS = re.findall(r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?", README, re.DOTALL)
VARYING = {"id", "request_id", "timings_ms", "vision_cache"}


def without_varying(value: Any) -> Any:
    """Return JSON without what differs from run to run, numbers to three places."""
    if isinstance(value, dict):
        return {name: without_varying(each) for name, each in value.items() if name not in VARYING}
    if isinstance(value, list):
        return [without_varying(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_a_request_of_the_readme_gets_the_answer_that_it_shows(
    service: RunningService, command: str, shown: str
) -> None:
    words = [word.replace("http://localhost:3000", service.url) for word in shlex.split(command)]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    if shown:
        assert without_varying(json.loads(run.stdout)) == without_varying(json.loads(shown))
    elif "stream=true" in command:
        assert [name for name, _ in parse_events(run.stdout)][-2:] == ["token", "result"]
    else:
        assert [each["model"] for each in json.loads(run.stdout)["answers"]] == list(EMBEDDED)


@pytest.mark.parametrize(("call", "shown"), CALLS)
def test_a_call_of_the_readme_prints_what_it_shows(service: RunningService, call: str, shown: str) -> None:
    code = call.replace("localhost:3001", service.grpc_address)
    code = code.replace("localhost:3000", service.url.removeprefix("http://"))
    quiet = "-Wignore:OpenCV"  # supervision says at its import that it goes without
    run = subprocess.run([sys.executable, quiet, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == (shown, "")


def test_every_call_of_the_readme_shows_what_it_prints() -> None:
    assert len(CALLS) == README.count("```python") > 0


@pytest.mark.parametrize(("commands", "shown"), COMMANDS)
def test_a_command_of_the_readme_succeeds_and_prints_what_it_shows(
    service: RunningService, tmp_path: Path, commands: str, shown: str
) -> None:
    printed = [run_command(line.replace("/tmp/", f"{tmp_path}/"), service) for line in commands.splitlines()]
    assert all(printed)
    if shown:
        assert [without_times(text) for text in printed] == [without_times(shown)]


def run_command(line: str, service: RunningService) -> str:
    """Run a command of the client against the service and return what it prints."""
    program, *words = shlex.split(line)
    assert program == "diptych"
    return run(service, *words, cwd=ROOT).stdout


def without_times(text: str) -> str:
    return re.sub(r"\d+ ms", "… ms", text)


def test_there_are_requests_in_the_readme() -> None:
    assert (len(BLOCKS), len(COMMANDS)) == (4, 2)


def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    catalog = load_catalog(MODELS / "catalog.yaml")
    assert task_table_markdown(catalog[model_id] for model_id in EMBEDDED) in README
    assert settings_table() in README


def test_the_numbers_of_the_bench_are_those_of_its_last_report() -> None:
    report = (ROOT / "loadtest" / "results" / "bench.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n\n(.+?)\n(?=\n## |\Z)", report, re.DOTALL | re.MULTILINE))
    for title in ("Ours ÷ best peer", "The limit", "Where the time of a request goes, mean ms"):
        assert sections[title] in README, title


def test_the_numbers_of_the_load_test_are_those_of_its_last_report() -> None:
    report = (ROOT / "loadtest" / "results" / "load" / "load.md").read_text(encoding="utf-8")
    block = README.partition("<!-- load: loadtest/results/load/load.md -->")[2].partition("<!-- end -->")[0]
    sections = dict(re.findall(r"^##? (.+?)\n\n(.+?)\n(?=\n## |\Z)", report, re.DOTALL | re.MULTILINE))
    for title in ("Load", "Saturation", "Offered and answered", "Tasks"):
        assert sections[title] in block, title


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`((?:service|runners|tasks|export|client|loadtest|models)/[\w/.-]+)`", README)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
