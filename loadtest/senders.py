"""One request over REST, as a stream of server-sent events, or over gRPC, and its check.

An answer is wrong if it is about another task, model or image size, if its result is of another
kind, or if its text differs from an earlier answer to the same question about the same image.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
import grpc
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from urllib3 import encode_multipart_formdata

from loadtest.traffic import COMPARED, Question

OK = "ok"
WRONG_ANSWER = "wrong_answer"
CONNECTION_FAILED = "connection_failed"
TIMED_OUT = "timed_out"
# Bugs of the service under any load; all other errors mean that it lacks capacity.
DEFECTS = frozenset({WRONG_ANSWER, "internal", CONNECTION_FAILED, TIMED_OUT})
GRACE_S = 5.0  # after a request's deadline, before it counts as timed out

_CONNECT_TIMEOUT_S = 10
_GRPC_SERVICE = "diptych.v1.Vision"
_GRPC_OPTIONS = [("grpc.max_receive_message_length", -1)]
# Errors without the service's own code come from this side or from a proxy.
_GRPC_CODES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.UNAVAILABLE: CONNECTION_FAILED,
}


@dataclass(frozen=True, slots=True)
class ModelReply:
    """One model's answer."""

    model: str
    task: str
    result_keys: tuple[str, ...]
    size_wh: tuple[int, int]
    raw_text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of one request: answers, or the code of its error."""

    status: str  # OK, the service's code, or one of the statuses above
    answers: tuple[ModelReply, ...] = ()
    first_token_s: float | None = None  # streams only; time.monotonic()


@dataclass(slots=True)
class Checker:
    """Checks replies; keeps the texts of answers about repeated images."""

    answers_repeat: bool
    _texts: dict[tuple[object, ...], str] = field(default_factory=dict)

    def status(self, question: Question, reply: Reply) -> str:
        """Return the status of a reply; WRONG_ANSWER for answers that cannot be right."""
        if reply.status != OK:
            return reply.status
        is_complete = bool(reply.answers) and (
            question.model == COMPARED or len(reply.answers) == 1
        )
        fits = all(self._fits(question, answer) for answer in reply.answers)
        return OK if is_complete and fits else WRONG_ANSWER

    def _fits(self, question: Question, answer: ModelReply) -> bool:
        fits = (
            answer.task == question.task
            and question.model in (COMPARED, answer.model)
            and answer.result_keys == (question.result_key,)
            and answer.size_wh == question.image.size_wh
        )
        if not fits or not self.answers_repeat or question.repeat_key is None:
            return fits
        key = (answer.model, *question.repeat_key)
        return self._texts.setdefault(key, answer.raw_text) == answer.raw_text


class RestSender:
    """Sends each request over a new connection, because each represents another client.

    The service could also close an idle connection at the moment when it is reused.
    """

    def __init__(self, url: str, max_connections: int, api_key: str | None) -> None:
        self._http = HTTPClient.from_url(
            url,
            concurrency=max_connections,
            connection_timeout=_CONNECT_TIMEOUT_S,
            network_timeout=120,
        )
        self._headers = {"Connection": "close"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def predict(self, question: Question) -> Reply:
        return self._post("/v1/predict", question, question.fields(), _answer)

    def compare(self, question: Question) -> Reply:
        """Return all answers, or the first error among them."""
        return self._post("/v1/compare", question, question.fields(), _answers)

    def stream(self, question: Question) -> Reply:
        fields = question.fields() | {"stream": "true"}
        return self._post("/v1/predict", question, fields, _streamed)

    def get(self, path: str) -> Any:
        """Return a JSON document; raise `OSError` for any status but 200."""
        try:
            with self._http.get(path, headers=self._headers) as response:
                body = bytes(response.read())
                status = response.status_code
        except HTTPParseError as error:
            raise OSError(f"GET {path}: {error}") from error
        if status != 200:
            raise OSError(f"GET {path} failed with status {status}: {body[:200]!r}")
        return json.loads(body)

    def close(self) -> None:
        self._http.close()

    def _post(
        self, path: str, question: Question, fields: Mapping[str, Any], read: "_Read"
    ) -> Reply:
        form: dict[str, Any] = {}
        for name, value in fields.items():
            form[name] = value if isinstance(value, str) else json.dumps(value)
        form["image"] = ("scene.jpg", question.image.jpeg, "image/jpeg")
        body, content_type = encode_multipart_formdata(form)
        deadline = {"X-Deadline-Ms": f"{question.deadline_s * 1000:.0f}"}
        headers = self._headers | {"Content-Type": content_type} | deadline
        try:
            with (
                gevent.Timeout(question.deadline_s + GRACE_S),
                self._http.post(path, body, headers) as response,
            ):
                return read(response) if response.status_code == 200 else _refusal(response)
        except gevent.Timeout:
            return Reply(TIMED_OUT)
        except (OSError, HTTPParseError):
            return Reply(CONNECTION_FAILED)
        except (ValueError, KeyError, TypeError):
            return Reply(WRONG_ANSWER)  # status 200 with an unknown body


_Read = Callable[[Any], Reply]


def _refusal(response: Any) -> Reply:
    """Return an error with its code, or with its status if the body has none."""
    try:
        return Reply(str(json.loads(response.read())["error"]["code"]))
    except (ValueError, KeyError, TypeError):
        return Reply(f"status_{response.status_code}")


def _model_reply(answer: Mapping[str, Any]) -> ModelReply:
    size_wh = answer["image"]["width"], answer["image"]["height"]
    result_keys = tuple(answer["result"])
    return ModelReply(answer["model"], answer["task"], result_keys, size_wh, answer["raw_text"])


def _answer(response: Any) -> Reply:
    return Reply(OK, (_model_reply(json.loads(response.read())),))


def _answers(response: Any) -> Reply:
    answers = json.loads(response.read())["answers"]
    for answer in answers:
        if "error" in answer:
            return Reply(answer["error"]["code"])
    return Reply(OK, tuple(map(_model_reply, answers)))


def _streamed(response: Any) -> Reply:
    """Read a stream to its end."""
    first_token_s = None
    reply = Reply(CONNECTION_FAILED)
    event = ""
    while line := bytes(response.readline(b"\n")).decode():
        name, _, value = line.strip().partition(": ")
        if name == "event":
            event = value
        elif name != "data":
            continue
        elif event == "token":
            first_token_s = first_token_s or time.monotonic()
        elif event == "error":
            reply = Reply(str(json.loads(value)["error"]["code"]))
        elif event == "result":
            reply = Reply(OK, (_model_reply(json.loads(value)),), first_token_s)
    return reply


class GrpcSender:
    """One channel to the service, whose messages are those of its reflection."""

    def __init__(self, address: str, is_secure: bool, api_key: str | None) -> None:
        if is_secure:
            credentials = grpc.ssl_channel_credentials()
            self._channel = grpc.secure_channel(address, credentials, _GRPC_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, _GRPC_OPTIONS)
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
        method = pool.FindServiceByName(_GRPC_SERVICE).methods_by_name["Predict"]
        self._request = GetMessageClass(method.input_type)
        self._predict = self._channel.unary_unary(
            f"/{_GRPC_SERVICE}/Predict",
            request_serializer=self._request.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )

    def predict(self, question: Question) -> Reply:
        request: Any = ParseDict(question.fields(), self._request())
        request.image = question.image.jpeg
        try:
            answer = self._predict(request, timeout=question.deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return _grpc_refusal(error)
        size_wh = answer.image.width, answer.image.height
        result_keys = (answer.WhichOneof("result"),)
        reply = ModelReply(answer.model, answer.task, result_keys, size_wh, answer.raw_text)
        return Reply(OK, (reply,))

    def close(self) -> None:
        self._channel.close()


def _grpc_refusal(error: Any) -> Reply:
    trailing = dict(error.trailing_metadata() or ())
    default = _GRPC_CODES.get(error.code(), f"status_{error.code().name.lower()}")
    return Reply(str(trailing.get("diptych-code", default)))
