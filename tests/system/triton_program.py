"""`python triton_program.py http|grpc ADDRESS`: run the calls of stdin by Triton's client.

Calls are JSON, `[[method, arguments], …]`; so is what each returned or raised. `infer` builds
tensors from a base64 image and the fields of /v1/predict.
"""

import base64
import importlib
import json
import sys
from typing import Any

import numpy as np
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def main(transport: str, address: str) -> None:
    module = importlib.import_module(f"tritonclient.{transport}")
    with module.InferenceServerClient(address) as client:
        outcomes = [outcome(module, client, *call) for call in json.load(sys.stdin)]
    json.dump(outcomes, sys.stdout)


def outcome(module: Any, client: Any, method: str, arguments: Any) -> dict[str, Any]:
    is_message = module.__name__.endswith("grpc") and method.startswith("get_")
    try:
        if method == "infer":
            return {"value": infer(module, client, **arguments)}
        form = {"as_json": True} if is_message else {}
        return {"value": getattr(client, method)(*arguments, **form)}
    except InferenceServerException as error:
        return {"error": error.message(), "status": error.status()}


def infer(
    module: Any,
    client: Any,
    model: str,
    image: str,
    fields: dict[str, Any],
    options: dict[str, Any] | None = None,  # arguments of the client's infer
    is_json: bool = False,  # over HTTP: no raw tensors
) -> dict[str, Any]:
    form = {"binary_data": False} if is_json else {}
    inputs = []
    for name, value in {"image": image if is_json else base64.b64decode(image), **fields}.items():
        array = array_of(value)
        inputs.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        inputs[-1].set_data_from_numpy(array, **form)
    outputs = [module.InferRequestedOutput("result", **form)]
    result = client.infer(model, inputs, outputs=outputs, **(options or {}))
    (text,) = result.as_numpy("result")
    response = result.get_response()
    request_id = response["id"] if isinstance(response, dict) else response.id
    return {"id": request_id, "result": json.loads(text)}


def array_of(value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], str | bytes):
        return np.array(values, dtype=np.object_)
    return np.array(values, dtype=np.float64 if isinstance(value, list) else None)


if __name__ == "__main__":
    main(*sys.argv[1:])
