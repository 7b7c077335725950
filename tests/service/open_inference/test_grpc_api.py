"""The servicer over the real core and a real connection, with the messages of Triton's proto."""

import asyncio
import json
import struct
from dataclasses import replace
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message

from service.admission.api_keys import ApiKeys
from service.errors import InvalidRequest
from service.inference.core import Core
from service.open_inference.grpc_api import read_request
from service.open_inference.tensors import Tensor
from service.rpc.proto import inference_pb2 as pb
from service.rpc.proto.inference_pb2_grpc import GRPCInferenceServiceStub
from tests.service.http.test_boundary import num_gone
from tests.support.api_keys import api_keys
from tests.support.core_calls import run, until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PALIGEMMA_ID, make_core
from tests.support.rest_client import OCR, SMALL_PNG, client, grpc_channel

Input = pb.ModelInferRequest.InferInputTensor
Output = pb.ModelInferRequest.InferRequestedOutputTensor
Contents = pb.InferTensorContents
NONE = pb.InferParameter()
VARYING = {"timings_ms", "id"}


def with_length(element: bytes) -> bytes:
    return struct.pack("<I", len(element)) + element


def typed(name: str, datatype: str, shape: list[int], **contents: Any) -> Input:
    return Input(name=name, datatype=datatype, shape=shape, contents=Contents(**contents))


TYPED = [
    typed("image", "BYTES", [1], bytes_contents=[SMALL_PNG]),
    typed("task", "BYTES", [1], bytes_contents=[b"ocr"]),
]
RAW = [Input(name=name, datatype="BYTES", shape=[1]) for name in ("image", "task")]


def raw_request(task: bytes = b"ocr", **fields: Any) -> pb.ModelInferRequest:
    contents = [with_length(SMALL_PNG), with_length(task)]
    return pb.ModelInferRequest(
        **{"model_name": FLORENCE_ID, "inputs": RAW, "raw_input_contents": contents} | fields
    )


def call(
    method: str,
    message: Message,
    core: Core | None = None,
    keys: ApiKeys | None = None,
    key: str = "",
) -> Any:
    """Return the response or the error of a method."""

    async def asking() -> Any:
        metadata = [("authorization", f"Bearer {key}")] if key else []
        async with grpc_channel(core or make_core(), keys or ApiKeys(None)) as channel:
            try:
                stub: Any = GRPCInferenceServiceStub(channel)
                return await getattr(stub, method)(message, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                return error

    return run(asking())


def infer(request: pb.ModelInferRequest, core: Core | None = None) -> Any:
    return call("ModelInfer", request, core)


def test_result_is_the_body_of_predict() -> None:
    response = infer(raw_request(id="mine"))
    (raw,) = response.raw_output_contents
    result = json.loads(raw[4:])
    expected = client().predict(OCR).json()
    assert raw == with_length(raw[4:])
    assert result.keys() == expected.keys()
    assert all(result[name] == expected[name] for name in result.keys() - VARYING)
    assert (response.id, result["id"]) == ("mine", "mine")
    assert (response.model_name, response.model_version) == (FLORENCE_ID, "1")
    (output,) = response.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("result", "BYTES", [1])


def test_typed_tensors_have_a_typed_result() -> None:
    response = infer(pb.ModelInferRequest(model_name=FLORENCE_ID, inputs=TYPED))
    (element,) = response.outputs[0].contents.bytes_contents
    assert json.loads(element)["result"] == {"text": "HELLO"}
    assert not response.raw_output_contents


@pytest.mark.parametrize(
    ("tensor", "data"),
    [
        (typed("labels", "BYTES", [2], bytes_contents=[b"a", b"b"]), [b"a", b"b"]),
        (typed("region", "FP32", [4], fp32_contents=[1, 2, 3, 4]), [1, 2, 3, 4]),
        (typed("region", "FP64", [4], fp64_contents=[1.1, 2, 3, 4]), [1.1, 2, 3, 4]),
        (typed("seed", "INT64", [1], int64_contents=[2**62]), [2**62]),
        (typed("max_new_tokens", "INT32", [1], int_contents=[5]), [5]),
        (typed("constrained", "BOOL", [1], bool_contents=[False]), [False]),
    ],
)
def test_elements_of_a_typed_tensor(tensor: Input, data: list[Any]) -> None:
    (read,) = read_request(pb.ModelInferRequest(inputs=[tensor])).inputs
    shape = tuple(tensor.shape)
    assert replace(read, data=list(read.data)) == Tensor(tensor.name, tensor.datatype, shape, data)


def test_parameters_have_json_types() -> None:
    forms: dict[str, Any] = {"string": "ocr", "int64": 5, "uint64": 2, "double": 0.5, "bool": False}
    parameters = {name: pb.InferParameter(**{f"{name}_param": forms[name]}) for name in forms}
    fields = read_request(pb.ModelInferRequest(parameters=parameters | {"none": NONE})).parameters
    assert fields == forms | {"none": None}
    assert fields["bool"] is False


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"raw_input_contents": [b""]}, "1 raw_input_contents for 2 inputs"),
        ({"inputs": [RAW[0], TYPED[1]]}, "contents beside raw_input_contents"),
        ({"inputs": [Input(name="task", parameters={"a": NONE}), RAW[1]]}, "'task' has parameters"),
        ({"outputs": [Output(name="result", parameters={"a": NONE})]}, "'result' has parameters"),
        ({"id": "x" * 257}, "id has 257 characters; the maximum is 256"),
        ({"inputs": [Input()] * 101}, "101 inputs, outputs or parameters; the maximum of each is"),
        ({"outputs": [Output()] * 101, "inputs": RAW}, "101 inputs, outputs or parameters"),
        ({"parameters": {str(number): NONE for number in range(101)}}, "101 inputs, outputs or"),
    ],
)
def test_contradictory_message_is_rejected(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        read_request(raw_request(**fields))


@pytest.mark.parametrize(
    ("fields", "code", "name", "param"),
    [
        ({"inputs": [RAW[0], Input(name="ä")]}, "INVALID_ARGUMENT", "invalid_request", "inputs"),
        ({"model_name": "x"}, "NOT_FOUND", "unknown_model", "model"),
        ({"model_version": "2"}, "NOT_FOUND", "unknown_model", "version"),
    ],
)
def test_error_has_code_and_metadata(
    fields: dict[str, Any], code: str, name: str, param: str
) -> None:
    error = infer(raw_request(id="mine", **fields))
    trailing = dict(error.trailing_metadata())
    assert error.code() == grpc.StatusCode[code]
    names = ("diptych-code", "diptych-param", "x-request-id")
    assert [trailing[entry] for entry in names] == [name, param, "mine"]


def test_call_ends_at_its_timeout() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=asyncio.Event())
    late = raw_request(parameters={"timeout": pb.InferParameter(int64_param=50_000)})
    error = infer(late, make_core(decoders={FLORENCE_ID: decoder}))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED


async def test_disconnected_client_frees_its_slots() -> None:
    decoder = FakeDecoder(FLORENCE_ANSWERS)
    before = num_gone("oip")
    decoder.released = asyncio.Event()
    core = make_core(decoders={FLORENCE_ID: decoder})
    async with grpc_channel(core, ApiKeys(None)) as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        asking = stub.ModelInfer(raw_request())
        await until(lambda: decoder.specs)
        asking.cancel()
        await until(lambda: decoder.num_cancelled and num_gone("oip") == before + 1)


def test_metadata_and_health_need_no_key() -> None:
    keys = api_keys("my-key")
    names = {"name": FLORENCE_ID}
    assert call("ServerLive", pb.ServerLiveRequest(), keys=keys).live
    assert call("ServerReady", pb.ServerReadyRequest(), keys=keys).ready
    assert call("ServerMetadata", pb.ServerMetadataRequest(), keys=keys).name == "diptych"
    for method, message in [
        ("ModelReady", pb.ModelReadyRequest(**names)),
        ("ModelMetadata", pb.ModelMetadataRequest(**names)),
        ("ModelConfig", pb.ModelConfigRequest(**names)),
        ("ModelInfer", raw_request()),
    ]:
        assert call(method, message, keys=keys).code() == grpc.StatusCode.UNAUTHENTICATED
        assert not isinstance(call(method, message, keys=keys, key="my-key"), grpc.RpcError)


def test_unknown_model_is_not_ready() -> None:
    core = make_core(is_up=False)
    for name, ready in ((FLORENCE_ID, False), (PALIGEMMA_ID, True), ("x", False)):
        request = pb.ModelReadyRequest(name=name)
        assert call("ModelReady", request, core).ready == ready
    assert not call("ServerReady", pb.ServerReadyRequest(), core).ready
