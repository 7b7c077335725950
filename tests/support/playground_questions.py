"""The page's default requests for a sample, sent to the API."""

import json
from typing import Any

import httpx

from tasks.table import Task
from tests.support.export_cli import ROOT
from tests.support.running_service import post_form

FOLDER = ROOT / "service/web/playground/samples"
SAMPLES: dict[str, dict[str, Any]] = {
    sample["id"]: sample
    for sample in json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
}
SAMPLE = "mgql"


def example_fields(task: Task) -> dict[str, Any]:
    """Return the fields of a task as the page suggests them: the first alternative, no defaults."""
    examples = SAMPLES[SAMPLE]["examples"]
    return {name: examples[name] for name in [*task.required, *task.exactly_one_of[:1]]}


def api_response(client: httpx.Client, model: str, task_id: str, **fields: Any) -> httpx.Response:
    image = (FOLDER / SAMPLES[SAMPLE]["file"]).read_bytes()
    form = {"task": task_id, "model": model, **fields}
    return post_form(client, "/v1/predict", image, form)


def api_answer(client: httpx.Client, model: str, task_id: str, **fields: Any) -> dict[str, Any]:
    response = api_response(client, model, task_id, **fields).raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer
