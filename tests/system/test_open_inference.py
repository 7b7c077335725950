"""Triton's own clients, unchanged, against the running service: metadata, the answers of REST, its
errors, ids.

They are in separate processes: their protobuf messages have the same names as ours.
"""

import base64
import json
import subprocess
import sys
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


def infer(fields: dict[str, Any], **arguments: Any) -> list[Any]:
    image = base64.b64encode(default_scene()).decode()
    others = {"model": FLORENCE, **fields}
    model = others.pop("model")
    return ["infer", {"model": model, "image": image, "fields": others, **arguments}]


def test_answers_are_those_of_rest(service: RunningService, transport: str) -> None:
    for is_json in {False, transport == "http"}:
        outcomes = run(service, transport, *(infer(fields, is_json=is_json) for fields in FEW))
        results = [without_varying(outcome["value"]["result"]) for outcome in outcomes]
        answers = [service.predict(**{"model": FLORENCE, **fields}).json() for fields in FEW]
        assert results == list(map(without_varying, answers))


def test_methods_of_the_client(service: RunningService, transport: str) -> None:
    calls = [
        ["is_server_ready", []],
        ["is_model_ready", [PALIGEMMA, "1"]],
        ["is_model_ready", ["gpt"]],
        ["get_server_metadata", []],
        ["get_model_metadata", [FLORENCE]],
        ["get_model_config", [FLORENCE]],
        infer({"task": "ocr"}, options={"request_id": "mine-1", "model_version": "1"}),
    ]
    outcomes = run(service, transport, *calls, infer({"task": "ocr"}, options={"timeout": 100}))
    *ready, server, model, config, ocr = [outcome["value"] for outcome in outcomes[:-1]]
    assert (ready, server["name"], model["name"]) == ([True, True, False], "diptych", FLORENCE)
    assert "binary_tensor_data" in server["extensions"]
    assert (model["versions"], model["outputs"][0]["datatype"]) == (["1"], "BYTES")
    inputs = config.get("config", config)["input"]  # a message of its own over gRPC
    assert [tensor["name"] for tensor in inputs] == [tensor["name"] for tensor in model["inputs"]]
    required = [tensor["name"] for tensor in inputs if not tensor.get("optional")]
    assert required == ["image", "task"]
    assert (ocr["id"], ocr["result"]["id"]) == ("mine-1", "mine-1")
    assert outcomes[-1]["status"] in ("504", "StatusCode.DEADLINE_EXCEEDED")
