"""gRPC: the methods of `inference.GRPCInferenceService`, the Open Inference Protocol v2, around the core.

A request's tensors are all raw, in `raw_input_contents`, or all typed, in `contents`; the result goes back likewise.
Source: kserve/open-inference-protocol specification/protocol/open_inference_grpc.proto.
"""

from collections.abc import Mapping, Sequence

from google.protobuf.json_format import ParseDict

from service.errors import InvalidRequest, UnknownModel
from service.inference.core import RequestContext
from service.inference.prediction import Answer
from service.open_inference.metadata import model_config, model_metadata, server_metadata
from service.open_inference.tensors import (
    API,
    OUTPUT,
    VERSION,
    InferRequest,
    Tensor,
    model_of,
    raw_result,
    request_body,
    request_context,
    result_text,
    shown,
)
from service.rpc.boundary import GrpcApi, method
from service.rpc.proto import inference_pb2 as pb
from service.rpc.proto import inference_pb2_grpc as pb_grpc

_CONTENTS = {  # where the elements of a datatype lie
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class OpenInferenceApi(GrpcApi, pb_grpc.GRPCInferenceServiceServicer):
    """The protocol's service around a core."""

    api = API
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    open_methods = frozenset({"ServerMetadata"})
    health_methods = frozenset({"ServerLive", "ServerReady"})

    @method
    async def ServerLive(self, _: pb.ServerLiveRequest, __: RequestContext) -> pb.ServerLiveResponse:
        """Say that the server answers."""
        return pb.ServerLiveResponse(live=True)

    @method
    async def ServerReady(self, _: pb.ServerReadyRequest, __: RequestContext) -> pb.ServerReadyResponse:
        """Say whether every model answers."""
        return pb.ServerReadyResponse(ready=all([await self._core.is_ready(model) for model in self._core.models]))

    @method
    async def ModelReady(self, request: pb.ModelReadyRequest, _: RequestContext) -> pb.ModelReadyResponse:
        """Say whether a model answers; one that is not served does not."""
        try:
            model = model_of(self._core.models, request.name, request.version)
        except UnknownModel:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=await self._core.is_ready(model))

    @method
    async def ServerMetadata(self, _: pb.ServerMetadataRequest, __: RequestContext) -> pb.ServerMetadataResponse:
        """Tell what the server is."""
        return ParseDict(server_metadata(), pb.ServerMetadataResponse())

    @method
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _: RequestContext) -> pb.ModelMetadataResponse:
        """Tell the inputs and outputs of a model."""
        model = model_of(self._core.models, request.name, request.version)
        return ParseDict(model_metadata(model), pb.ModelMetadataResponse())

    @method
    async def ModelConfig(self, request: pb.ModelConfigRequest, _: RequestContext) -> pb.ModelConfigResponse:
        """Tell the configuration of a model."""
        model = model_of(self._core.models, request.name, request.version)
        return ParseDict({"config": model_config(model)}, pb.ModelConfigResponse())

    @method
    async def ModelInfer(self, request: pb.ModelInferRequest, context: RequestContext) -> pb.ModelInferResponse:
        """Answer with one model."""
        model = model_of(self._core.models, request.model_name, request.model_version)
        asked = read_request(request)
        context = request_context(asked, context)
        wanted = request_body(asked, model)
        answer = await self._core.predict(wanted.image, wanted.fields, context)
        return write_answer(answer, asked, context.request_id)


def read_request(request: pb.ModelInferRequest) -> InferRequest:
    """Return what a message asks for; raise `InvalidRequest`."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        message = f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs; send one for each"
        raise InvalidRequest(message, "raw_input_contents")
    inputs = tuple(_tensor(each, raw[index] if raw else None) for index, each in enumerate(request.inputs))
    outputs = tuple(output.name for output in request.outputs)
    for output in request.outputs:
        _refuse_parameters(output.parameters)
    return InferRequest(request.id, inputs, _values(request.parameters), outputs, wants_raw=bool(raw))


def write_answer(answer: Answer, request: InferRequest, request_id: str) -> pb.ModelInferResponse:
    """Return the message of an answer."""
    output = pb.ModelInferResponse.InferOutputTensor(name=OUTPUT, datatype="BYTES", shape=[1])
    response = pb.ModelInferResponse(
        model_name=answer.model.id, model_version=VERSION, id=request.id or request_id, outputs=[output]
    )
    if request.wants_raw:
        response.raw_output_contents.append(raw_result(answer, request_id))
    else:
        response.outputs[0].contents.bytes_contents.append(result_text(answer, request_id).encode())
    return response


def _tensor(each: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Tensor:
    _refuse_parameters(each.parameters)
    if raw is not None and each.HasField("contents"):
        raise InvalidRequest("an input has contents, and there are raw_input_contents; send one of them", "inputs")
    typed: Sequence[object] = getattr(each.contents, _CONTENTS.get(each.datatype, "bytes_contents"))
    return Tensor(each.name, each.datatype, tuple(each.shape), typed if raw is None else raw)


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    """Return parameters in the types that they have in JSON; one without a value is None."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
        for name, parameter in parameters.items()
    }


def _refuse_parameters(parameters: Mapping[str, pb.InferParameter]) -> None:
    """Raise `InvalidRequest` for those of a tensor: over gRPC there is none to give."""
    for name in parameters:
        raise InvalidRequest(f"a tensor has the parameter {shown(name)}; it takes none", "parameters")
