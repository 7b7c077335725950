"""Sends questions over gRPC, with the messages from the service's reflection instead of generated
code.
"""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from loadtest.load.senders.replies import CONNECTION_FAILED, OK, ModelReply, Reply
from loadtest.load.traffic.questions import COMPARED, Question

_SERVICE = "diptych.v1.Vision"
_CONNECT_TIMEOUT_S = 10
_OPTIONS = [("grpc.max_receive_message_length", -1)]
# Errors without the service's own code come from this side or from a proxy.
_CODES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.UNAVAILABLE: CONNECTION_FAILED,
}


class GrpcSender:
    """One channel to the service."""

    def __init__(self, address: str, is_secure: bool, api_key: str | None) -> None:
        if is_secure:
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(), _OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        self._metadata = [] if api_key is None else [("authorization", f"Bearer {api_key}")]
        self._request: type[Message]
        self._predict: Callable[..., Any]

    def connect(self) -> None:
        """Connect and read the messages; raise `OSError` if the service does not answer."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise OSError(f"the gRPC port does not answer within {_CONNECT_TIMEOUT_S} s") from error
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))
        predict = pool.FindServiceByName(_SERVICE).FindMethodByName("Predict")
        self._request = GetMessageClass(predict.input_type)
        self._predict = self._channel.unary_unary(
            f"/{_SERVICE}/Predict",
            request_serializer=self._request.SerializeToString,
            response_deserializer=GetMessageClass(predict.output_type).FromString,
        )

    def predict(self, question: Question) -> Reply:
        fields = {"task": question.task} | (
            {} if question.model == COMPARED else {"model": question.model}
        )
        request: Any = ParseDict(fields | question.parameters, self._request())
        request.image = question.image.jpeg
        try:
            answer = self._predict(request, timeout=question.deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return Reply(_code(error))
        size_wh = answer.image.width, answer.image.height
        result_keys = (answer.WhichOneof("result"),)
        return Reply(
            OK, (ModelReply(answer.model, answer.task, result_keys, size_wh, answer.raw_text),)
        )

    def close(self) -> None:
        self._channel.close()


def _code(error: Any) -> str:
    trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
    return trailing.get("diptych-code") or _CODES.get(
        error.code(), f"status_{error.code().name.lower()}"
    )
