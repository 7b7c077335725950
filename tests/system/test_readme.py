"""What the README shows is what happens: its requests are sent, its tables are made anew."""

import json
import re
import shlex
import subprocess
import sys
from typing import Any

import pytest

from service.settings import settings_table
from tasks.catalog import load_catalog
from tasks.table_markdown import task_table_markdown
from tests.support.export_cli import EMBEDDED, MODELS, ROOT
from tests.support.running_service import RunningService

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```\n(?:\n```json\n(.*?)```)?", README, re.DOTALL)
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
    answer = json.loads(run.stdout)
    if shown:
        assert without_varying(answer) == without_varying(json.loads(shown))
    else:
        assert [each["model"] for each in answer["answers"]] == list(EMBEDDED)


def test_the_call_of_the_readme_gets_an_answer(service: RunningService) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = block.replace("localhost:3001", service.grpc_address)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.fullmatch(r"The image shows \w+ shapes on a \w+ background: .+\n", run.stdout)


def test_there_are_requests_in_the_readme() -> None:
    assert len(BLOCKS) == 3


def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    catalog = load_catalog(MODELS / "catalog.yaml")
    assert task_table_markdown(catalog[model_id] for model_id in EMBEDDED) in README
    assert settings_table() in README


def test_the_numbers_of_the_bench_are_those_of_its_last_report() -> None:
    report = (ROOT / "loadtest" / "results" / "bench.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)\n\n(.+?)\n(?=\n## |\Z)", report, re.DOTALL | re.MULTILINE))
    for title in ("Ours ÷ best peer", "The limit", "Where the time of a request goes, mean ms"):
        assert sections[title] in README, title


def test_every_file_that_the_readme_names_is_there() -> None:
    named = re.findall(r"`((?:service|runners|tasks|export|models)/[\w/.-]+)`", README)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
