"""The Open Inference Protocol v2 over gRPC: `inference.GRPCInferenceService`.

The tensors of a request are all raw (`raw_input_contents`) or all typed (`contents`); its result
has the same form. Source: kserve/open-inference-protocol
specification/protocol/open_inference_grpc.proto.
"""

from collections.abc import Sequence
from typing import Any

from google.protobuf.json_format import ParseDict

from service.admission.places import RequestContext
from service.errors import InvalidRequest, ServiceError
from service.inference.prediction import Answer
from service.open_inference import tensors
from service.rpc.boundary import GrpcApi
from service.rpc.proto import inference_pb2 as pb
from service.rpc.proto import inference_pb2_grpc as pb_grpc
from tasks.errors import shown

_CONTENTS = {  # the field for the elements of a datatype
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class OpenInferenceApi(GrpcApi, pb_grpc.GRPCInferenceServiceServicer):
    """The protocol's service."""

    api = tensors.API
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    image_methods = frozenset({"ModelInfer"})
    open_methods = frozenset({"ServerMetadata"})
    health_methods = frozenset({"ServerLive", "ServerReady"})

    async def ServerLive(self, *_: object) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, *_: object) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(
            ready=all([await self._core.is_ready(model) for model in self._core.models])
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, _: RequestContext
    ) -> pb.ModelReadyResponse:
        """Return readiness, which is False for a model that is not served."""
        try:
            model = tensors.model_of(self._core.models, request.name, request.version)
        except ServiceError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=await self._core.is_ready(model))

    async def ServerMetadata(self, *_: object) -> pb.ServerMetadataResponse:
        return ParseDict(tensors.server_metadata(), pb.ServerMetadataResponse())

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, _: RequestContext
    ) -> pb.ModelMetadataResponse:
        model = tensors.model_of(self._core.models, request.name, request.version)
        return ParseDict(tensors.model_metadata(model), pb.ModelMetadataResponse())

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, _: RequestContext
    ) -> pb.ModelConfigResponse:
        model = tensors.model_of(self._core.models, request.name, request.version)
        return ParseDict({"config": tensors.model_config(model)}, pb.ModelConfigResponse())

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: RequestContext
    ) -> pb.ModelInferResponse:
        model = tensors.model_of(self._core.models, request.model_name, request.model_version)
        infer = read_request(request)
        context = tensors.request_context(infer, context)
        body = tensors.request_body(infer, model)
        answer = await self._core.predict(body.image, body.fields, context)
        return write_answer(answer, infer, context.request_id)


def read_request(request: pb.ModelInferRequest) -> tensors.InferRequest:
    raw = request.raw_input_contents
    num_tensors = max(len(request.inputs), len(request.outputs), len(request.parameters))
    if num_tensors > tensors.MAX_TENSORS:
        problem = f"{num_tensors} inputs, outputs or parameters"
        raise InvalidRequest(f"{problem}; the maximum of each is {tensors.MAX_TENSORS}", "inputs")
    if len(request.id) > tensors.MAX_ID_CHARS:
        problem = f"id has {len(request.id)} characters"
        raise InvalidRequest(f"{problem}; the maximum is {tensors.MAX_ID_CHARS}", "id")
    sent: Sequence[Any] = (*request.inputs, *request.outputs)
    for tensor in sent:
        if tensor.parameters:
            problem = f"{shown(tensor.name)} has parameters"
            raise InvalidRequest(f"{problem}; those of a tensor are not supported", "parameters")
    if raw and len(raw) != len(request.inputs):
        problem = f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs"
        raise InvalidRequest(f"{problem}; send one per input", "raw_input_contents")
    contents = raw or [None] * len(request.inputs)
    inputs = tuple(map(_tensor, request.inputs, contents))
    outputs = tuple(output.name for output in request.outputs)
    parameters = {  # JSON types, None for a parameter without a value
        name: getattr(parameter, parameter.WhichOneof("parameter_choice") or "", None)
        for name, parameter in request.parameters.items()
    }
    return tensors.InferRequest(request.id, inputs, parameters, outputs, wants_raw=bool(raw))


def write_answer(
    answer: Answer, request: tensors.InferRequest, request_id: str
) -> pb.ModelInferResponse:
    response = ParseDict(
        tensors.answer_document(answer, request, request_id), pb.ModelInferResponse()
    )
    if request.wants_raw:
        response.raw_output_contents.append(tensors.raw_result(answer, request_id))
    else:
        response.outputs[0].contents.bytes_contents.append(
            tensors.result_text(answer, request_id).encode()
        )
    return response


def _tensor(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> tensors.Tensor:
    if raw is not None and tensor.HasField("contents"):
        problem = "an input has contents beside raw_input_contents; send one of them"
        raise InvalidRequest(problem, "inputs")
    field = _CONTENTS.get(tensor.datatype, "bytes_contents")
    typed: Sequence[object] = getattr(tensor.contents, field)
    data = typed if raw is None else raw
    return tensors.Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)
