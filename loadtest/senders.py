"""One request over REST, as a stream of server-sent events, or over gRPC, and its check.

An answer is wrong if it is about another task, model or image size, if its result is of another
kind, or if its text differs from an earlier answer to the same question about the same image.
"""

import json
import time
import uuid
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

from loadtest.traffic import COMPARED, Question

OK = "ok"
WRONG_ANSWER = "wrong_answer"
CONNECTION_FAILED = "connection_failed"
TIMED_OUT = "timed_out"
LEFT = "left"  # a stream that this side closed after its first text
# Bugs of the service under any load; all other errors mean that it lacks capacity.
DEFECTS = frozenset({WRONG_ANSWER, "internal", CONNECTION_FAILED, TIMED_OUT})
GRACE_S = 5.0  # after a request's deadline, before it counts as timed out

_CONNECT_TIMEOUT_S = 10
_BOUNDARY = uuid.uuid4().hex  # occurs in no request
_GRPC_SERVICE = "diptych.v1.Vision"
_GRPC_OPTIONS = [("grpc.max_receive_message_length", -1)]
# Errors without the service's own code come from this side or from a proxy.
_GRPC_CODES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.UNAVAILABLE: CONNECTION_FAILED,
}
_HTTP_STATUSES = {
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
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
    http_status: int = field(default=200, compare=False)  # of an error; over gRPC, that of its code
    has_retry_after: bool = field(default=False, compare=False)


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

    def leave_stream(self, question: Question) -> Reply:
        fields = question.fields() | {"stream": "true"}
        return self._post("/v1/predict", question, fields, _first_text)

    def analyze(self, question: Question) -> Reply:
        """Ask the question, and for a caption of its image's left half."""
        left_half = [0, 0, question.image.size_wh[0] / 2, question.image.size_wh[1]]
        half = {"id": "half", "task": "region_description", "region": left_half}
        steps = [{"id": "question"} | question.fields(), half]
        return self._post("/v1/analyze", question, {"steps": steps}, _first_step)

    def store(self, question: Question) -> Reply:
        """Store the image, and ask the question with its id."""
        ids: list[str] = []

        def read_id(response: Any) -> Reply:
            ids.append(json.loads(response.read())["id"])
            return Reply(OK)

        reply = self._post("/v1/images", question, {}, read_id)
        if reply.status != OK:
            return reply
        body = question.fields() | {"image": ids[0]}
        return self._post_json("/v1/predict", question, body, _answer)

    def chat(self, question: Question) -> Reply:
        """Ask over OpenAI's interface."""
        text = json.dumps(question.fields())
        content = [
            {"type": "text", "text": text},
            {"type": "image_url", "image_url": {"url": question.data_url}},
        ]
        body = {"model": question.model, "messages": [{"role": "user", "content": content}]}

        def read(response: Any) -> Reply:
            completion = json.loads(response.read())
            text = completion["choices"][0]["message"]["content"]
            # Size and kind are not in the response.
            size_wh, result_keys = question.image.size_wh, (question.result_key,)
            answer = ModelReply(completion["model"], question.task, result_keys, size_wh, text)
            return Reply(OK, (answer,))

        return self._post_json("/v1/chat/completions", question, body, read)

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
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        return self._send(path, kind, _form(fields, question.image.jpeg), question, read)

    def _post_json(self, path: str, question: Question, body: Any, read: "_Read") -> Reply:
        return self._send(path, "application/json", json.dumps(body).encode(), question, read)

    def _send(self, path: str, kind: str, body: bytes, question: Question, read: "_Read") -> Reply:
        deadline = {"X-Deadline-Ms": f"{question.deadline_s * 1000:.0f}"}
        headers = self._headers | {"Content-Type": kind} | deadline
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


def _form(fields: Mapping[str, Any], jpeg: bytes) -> bytes:
    """Return a form with an image (RFC 7578)."""
    parts = []
    for name, value in fields.items():
        text = value if isinstance(value, str) else json.dumps(value)
        parts.append(f'"{name}"\r\n\r\n{text}'.encode())
    parts.append(b'"image"; filename="scene.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + jpeg)
    start = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    body = b"".join(start + part + b"\r\n" for part in parts)
    return body + f"--{_BOUNDARY}--\r\n".encode()


def _refusal(response: Any) -> Reply:
    """Return an error with its code, or with its status if the body has none."""
    status = int(response.status_code)
    try:
        code = str(json.loads(response.read())["error"]["code"])
    except (ValueError, KeyError, TypeError):
        code = f"status_{status}"
    return Reply(code, http_status=status, has_retry_after=response.get("retry-after") is not None)


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


def _first_step(response: Any) -> Reply:
    """Return the first step's answer, or the first error of any."""
    answers = []
    for step in json.loads(response.read())["steps"]:
        answers += step["answers"]
    for answer in answers:
        if "error" in answer:
            return Reply(answer["error"]["code"])
    return Reply(OK, (_model_reply(answers[0]),))


def _first_text(response: Any) -> Reply:
    """Read the first event: a text, or the result of an answer without text."""
    event = bytes(response.readline(b"\n")).strip()
    return Reply(LEFT if event in (b"event: token", b"event: result") else event.decode())


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
        self._stream: Callable[..., Any]

    def connect(self) -> None:
        """Connect and read the messages; raise `OSError` if the service does not answer."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=_CONNECT_TIMEOUT_S)
        except grpc.FutureTimeoutError as error:
            raise OSError(f"the gRPC port does not answer within {_CONNECT_TIMEOUT_S} s") from error
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(self._channel))
        methods = pool.FindServiceByName(_GRPC_SERVICE).methods_by_name
        self._request = GetMessageClass(methods["Predict"].input_type)
        self._predict = self._call(self._channel.unary_unary, methods["Predict"])
        self._stream = self._call(self._channel.unary_stream, methods["PredictStream"])

    def predict(self, question: Question) -> Reply:
        request = self._message(question)
        try:
            answer = self._predict(request, timeout=question.deadline_s, metadata=self._metadata)
        except grpc.RpcError as error:
            return _grpc_refusal(error)
        return Reply(OK, (_message_reply(answer),))

    def leave_stream(self, question: Question) -> Reply:
        request = self._message(question)
        call = self._stream(request, timeout=question.deadline_s, metadata=self._metadata)
        try:
            next(call)
        except grpc.RpcError as error:
            return _grpc_refusal(error)
        call.cancel()
        return Reply(LEFT)

    def _message(self, question: Question) -> Any:
        request: Any = ParseDict(question.fields(), self._request())
        request.image = question.image.jpeg
        return request

    def _call(self, kind: Callable[..., Any], method: Any) -> Callable[..., Any]:
        call: Callable[..., Any] = kind(
            f"/{_GRPC_SERVICE}/{method.name}",
            request_serializer=self._request.SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call

    def close(self) -> None:
        self._channel.close()


def _message_reply(answer: Any) -> ModelReply:
    size_wh = answer.image.width, answer.image.height
    result_keys = (answer.WhichOneof("result"),)
    return ModelReply(answer.model, answer.task, result_keys, size_wh, answer.raw_text)


def _grpc_refusal(error: Any) -> Reply:
    trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
    default = _GRPC_CODES.get(error.code(), f"status_{error.code().name.lower()}")
    code = trailing.get("diptych-code", default)
    status = _HTTP_STATUSES.get(error.code(), 400)
    return Reply(code, http_status=status, has_retry_after="retry-after" in trailing)
