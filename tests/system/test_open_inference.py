"""Triton's own clients, unchanged, against the running service: metadata, the answers of REST, its
errors, ids.

They are in separate processes: their protobuf messages have the same names as ours.
"""

import base64
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.running_service import RunningService, default_scene
from tests.system.test_answers import FEW, FLORENCE, PALIGEMMA, without_varying

PROGRAM = Path(__file__).with_name("triton_program.py")

pytestmark = pytest.mark.parametrize("transport", ["http", "grpc"])


def run(service: RunningService, transport: str, *calls: list[Any]) -> list[dict[str, Any]]:
    """Return what each call returned, as `value`, or `error` and `status`."""
    address = service.grpc_address if transport == "grpc" else service.url.removeprefix("http://")
    run = subprocess.run(
        [sys.executable, str(PROGRAM), transport, address],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    outcomes: list[dict[str, Any]] = json.loads(run.stdout)
    return outcomes


def infer(fields: dict[str, Any], image: bytes | None = None, **options: Any) -> list[Any]:
    """Return a call of the method `infer`, whose form is in `options`."""
    data = base64.b64encode(image or default_scene()).decode()
    model = fields.get("model", FLORENCE)
    others = {name: value for name, value in fields.items() if name != "model"}
    return ["infer", {"model": model, "image": data, "fields": others, **options}]


@cache
def expected(service: RunningService) -> list[Any]:
    requests = [{"model": FLORENCE, **fields} for fields in FEW]
    return [without_varying(service.predict(**request).json()) for request in requests]


def test_answers_are_those_of_rest(service: RunningService, transport: str) -> None:
    forms: list[dict[str, Any]] = [{}, {"is_batched": True, "outputs": ["result"]}]
    if transport == "http":
        forms.append({"is_json": True, "outputs": ["result"]})
    for form in forms:
        outcomes = run(service, transport, *(infer(fields, **form) for fields in FEW))
        results = [without_varying(outcome["value"]["result"]) for outcome in outcomes]
        assert results == expected(service)


def test_server_and_models_are_described(service: RunningService, transport: str) -> None:
    calls = [
        ["is_server_live", []],
        ["is_server_ready", []],
        ["is_model_ready", [FLORENCE]],
        ["is_model_ready", [PALIGEMMA, "1"]],
        ["is_model_ready", ["gpt"]],
        ["is_model_ready", [FLORENCE, "2"]],
        ["get_server_metadata", []],
        ["get_model_metadata", [FLORENCE]],
        ["get_model_config", [FLORENCE]],
    ]
    outcomes = run(service, transport, *calls)
    *ready, server, model, config = [outcome["value"] for outcome in outcomes]
    assert ready == [True, True, True, True, False, False]
    assert (server["name"], "binary_tensor_data" in server["extensions"]) == ("diptych", True)
    assert (model["name"], model["versions"]) == (FLORENCE, ["1"])
    (tensor,) = model["outputs"]
    assert (tensor["name"], tensor["datatype"]) == ("result", "BYTES")
    inputs = config.get("config", config)["input"]  # a message of its own over gRPC
    assert [tensor["name"] for tensor in inputs] == [tensor["name"] for tensor in model["inputs"]]
    required = [tensor["name"] for tensor in inputs if not tensor.get("optional")]
    assert required == ["image", "task"]


def test_ids_options_and_timeouts_apply(service: RunningService, transport: str) -> None:
    ocr, short, late = run(
        service,
        transport,
        infer({"task": "ocr"}, options={"request_id": "mine-1", "model_version": "1"}),
        infer({"task": "captioning"}, options={"parameters": {"max_new_tokens": 4}}),
        infer({"task": "captioning"}, options={"timeout": 100}),
    )
    assert (ocr["value"]["id"], ocr["value"]["result"]["id"]) == ("mine-1", "mine-1")
    assert short["value"]["result"]["usage"]["generated_tokens"] == 4
    assert late["status"] in ("504", "StatusCode.DEADLINE_EXCEEDED")
