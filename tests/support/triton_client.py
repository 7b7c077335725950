"""Triton's client in a separate process: its protobuf messages have the same names as ours.

`python -m tests.support.triton_client http|grpc ADDRESS` reads calls as JSON, `[[method,
arguments], …]`, and prints what each returned or raised. `infer` builds tensors from a base64 image
and the fields of /v1/predict.
"""

import base64
import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Infer:
    """Arguments of one inference."""

    model: str
    image: bytes
    fields: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the client's infer
    outputs: tuple[str, ...] = ()
    is_batched: bool = False
    is_json: bool = False  # over HTTP: no raw tensors

    def arguments(self) -> dict[str, Any]:
        return asdict(self) | {"image": base64.b64encode(self.image).decode()}


def triton(
    transport: str, address: str, calls: Sequence[Infer | tuple[str, list[str]]]
) -> list[dict[str, Any]]:
    """Return what each call returned, as `value`, or `error` and `status`."""
    given = [["infer", call.arguments()] if isinstance(call, Infer) else call for call in calls]
    command = [sys.executable, "-m", "tests.support.triton_client", transport, address]
    run = subprocess.run(
        command, input=json.dumps(given), capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    assert run.returncode == 0, run.stderr
    outcomes: list[dict[str, Any]] = json.loads(run.stdout)
    return outcomes


def main(transport: str, address: str) -> None:
    """Run the calls of stdin."""
    module = importlib.import_module(f"tritonclient.{transport}")
    with module.InferenceServerClient(address) as client:
        json.dump([_outcome(module, client, *call) for call in json.load(sys.stdin)], sys.stdout)


def _outcome(module: Any, client: Any, method: str, arguments: Any) -> dict[str, Any]:
    try:
        if method == "infer":
            return {"value": _infer(module, client, **arguments)}
        as_json = (
            {"as_json": True}
            if module.__name__.endswith("grpc") and method.startswith("get_")
            else {}
        )
        return {"value": getattr(client, method)(*arguments, **as_json)}
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}


def _infer(
    module: Any,
    client: Any,
    model: str,
    image: str,
    fields: dict[str, Any],
    options: dict[str, Any],
    outputs: list[str],
    is_batched: bool,
    is_json: bool,
) -> dict[str, Any]:
    in_form = {"binary_data": False} if is_json else {}
    values = {"image": image if is_json else base64.b64decode(image)} | fields
    inputs = []
    for name, value in values.items():
        array = _array(value)[np.newaxis] if is_batched else _array(value)
        inputs.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array, **in_form)
    wanted = [module.InferRequestedOutput(name, **in_form) for name in outputs] or None
    result = client.infer(model, inputs, outputs=wanted, **options)
    (text,) = result.as_numpy("result")
    response = result.get_response()
    return {
        "id": response["id"] if isinstance(response, dict) else response.id,
        "result": json.loads(text),
    }


def _array(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str | bytes):
        return np.array(values, dtype=np.object_)
    return np.array(values, dtype=np.float64 if isinstance(value, list) else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
