"""The page's default requests for a sample, sent to the API."""

import json
from itertools import chain
from typing import Any

import httpx

from tasks.table import TASKS, Task
from tests.support.export_cli import ROOT

FOLDER = ROOT / "service/web/playground/samples"
SAMPLES: dict[str, dict[str, Any]] = {
    sample["id"]: sample
    for sample in json.loads((FOLDER / "samples.json").read_text(encoding="utf-8"))
}
SAMPLE = "mgql"


def example_fields(task: Task, sample_id: str = SAMPLE) -> dict[str, Any]:
    """Return the fields of a task as the page suggests them: the first alternative, no defaults."""
    examples = SAMPLES[sample_id]["examples"]
    return {name: examples[name] for name in [*task.required, *task.exactly_one_of[:1]]}


def api_response(
    client: httpx.Client, model: str, task_id: str, sample_id: str = SAMPLE, **fields: Any
) -> httpx.Response:
    """Return the API's response to a request for a sample."""
    form = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in fields.items()
    }
    image = (FOLDER / SAMPLES[sample_id]["file"]).read_bytes()
    return client.post(
        "/v1/predict", data={"task": task_id, "model": model, **form}, files={"image": image}
    )


def api_answer(
    client: httpx.Client, model: str, task_id: str, sample_id: str = SAMPLE, **fields: Any
) -> dict[str, Any]:
    """Return a model's answer to a request for a sample."""
    answer: dict[str, Any] = (
        api_response(client, model, task_id, sample_id, **fields).raise_for_status().json()
    )
    return answer


def example_answer(client: httpx.Client, model: str, task_id: str) -> dict[str, Any]:
    """Return a model's answer to the page's default request."""
    return api_answer(client, model, task_id, **example_fields(TASKS[task_id]))


def drawn(result: dict[str, Any]) -> list[tuple[str, list[list[float]]]]:
    """Return label and corners of each drawable object of a result."""
    if "detections" in result:
        return [(each["label"], _corners(*each["box"])) for each in result["detections"]]
    if "instances" in result:
        return [(each["label"], list(chain(*each["polygons"]))) for each in result["instances"]]
    return [(each["text"], each["quad"]) for each in result["text_regions"]]


def _corners(x1: float, y1: float, x2: float, y2: float) -> list[list[float]]:
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
