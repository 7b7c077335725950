"""Triton's own client, unchanged, against the running service: metadata, the answers of REST, its
errors, ids.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype

from tests.support.fake_service import data_url
from tests.support.running_service import RunningService, default_scene
from tests.system.test_answers import FEW, FLORENCE, PALIGEMMA, without_varying


@pytest.fixture
def server(service: RunningService) -> Iterator[Any]:
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as client:
        yield client


def tensor(name: str, value: Any, is_raw: bool) -> Any:
    values = value if isinstance(value, list) else [value]
    dtype: Any = np.float64 if isinstance(value, list) else None
    if isinstance(values[0], str | bytes):
        dtype = np.object_
    array = np.array(values, dtype=dtype)
    source = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    source.set_data_from_numpy(array, binary_data=is_raw)
    return source


def infer(server: Any, fields: dict[str, Any], is_raw: bool = True, **options: Any) -> Any:
    image = default_scene() if is_raw else data_url(default_scene())
    inputs = {"image": image, **fields}
    model = inputs.pop("model", FLORENCE)
    tensors = [tensor(name, value, is_raw) for name, value in inputs.items()]
    outputs = [triton.InferRequestedOutput("result", binary_data=is_raw)]
    return server.infer(model, tensors, outputs=outputs, **options)


def result_of(response: Any) -> dict[str, Any]:
    (text,) = response.as_numpy("result")
    result: dict[str, Any] = json.loads(text)
    return result


@pytest.mark.parametrize("is_raw", [False, True])
def test_answers_are_those_of_rest(service: RunningService, server: Any, is_raw: bool) -> None:
    for fields in FEW:
        answer = service.predict(**{"model": FLORENCE, **fields}).json()
        result = result_of(infer(server, fields, is_raw))
        assert without_varying(result) == without_varying(answer)


def test_methods_of_the_client(server: Any) -> None:
    assert server.is_server_ready()
    assert server.is_model_ready(PALIGEMMA, "1")
    assert not server.is_model_ready("gpt")
    metadata = server.get_server_metadata()
    assert metadata["name"] == "diptych"
    assert "binary_tensor_data" in metadata["extensions"]
    model = server.get_model_metadata(FLORENCE)
    assert (model["name"], model["versions"]) == (FLORENCE, ["1"])
    assert model["outputs"][0]["datatype"] == "BYTES"
    inputs = server.get_model_config(FLORENCE)["input"]
    assert [entry["name"] for entry in inputs] == [entry["name"] for entry in model["inputs"]]
    ocr = infer(server, {"task": "ocr"}, request_id="mine-1", model_version="1")
    assert (ocr.get_response()["id"], result_of(ocr)["id"]) == ("mine-1", "mine-1")
    with pytest.raises(triton.InferenceServerException) as caught:
        infer(server, {"task": "ocr"}, timeout=100)
    assert caught.value.status() == "504"
