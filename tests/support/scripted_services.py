"""A REST and a gRPC server that answer by a script and record the requests."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from diptych_client import Answer, TextResult
from diptych_client.json_values import to_json
from diptych_client.transports import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionServicer, add_VisionServicer_to_server
from tests.support.client_answers import answer
from tests.support.http_servers import Handler, serving

ANSWER = answer(TextResult("done"))
_FIELDS = {name: value for name, value in to_json(ANSWER).items() if name != "result"}
_STATUSES = {
    "overloaded": 429,
    "not_ready": 503,
    "invalid_request": 400,
    "unauthorized": 401,
    "not_found": 404,
    "image_expired": 410,
}
_CODES = {
    "overloaded": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "not_ready": grpc.StatusCode.UNAVAILABLE,
    "invalid_request": grpc.StatusCode.INVALID_ARGUMENT,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    code: str
    retry_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class Received:
    request_id: str
    timeout_s: float
    key: str | None
    body: bytes = b""  # over REST
    at_s: float = field(default_factory=time.monotonic)


Step = Refusal | Answer | bytes | None


@dataclass(slots=True)
class Script:
    """Each step once, then the answer; None breaks the connection, bytes are events or JSON."""

    steps: list[Step]
    received: list[Received] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)  # paths of DELETE
    # key: REST path
    listings: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def next_step(self, received: Received) -> Step:
        self.received.append(received)
        return self.steps.pop(0) if self.steps else ANSWER


@contextmanager
def scripted(interface: str, steps: Sequence[Step]) -> Iterator[tuple[str, Script]]:
    script = Script(list(steps))
    with (serving_rest if interface == "rest" else _grpc)(script) as url:
        yield url, script


@contextmanager
def serving_rest(script: Script) -> Iterator[str]:
    class RestHandler(Handler):
        def do_GET(self) -> None:
            self.send(200, json.dumps({"data": script.listings[self.path]}).encode())

        def do_DELETE(self) -> None:
            script.removed.append(self.path)
            self.send(200, b'{"id": "removed"}')

        def do_POST(self) -> None:
            timeout_s = int(self.headers["x-deadline-ms"]) / 1000
            request_id = self.headers["x-request-id"]
            key = self.headers["authorization"]
            match script.next_step(Received(request_id, timeout_s, key, self.body())):
                case Refusal(code, seconds):
                    ids = {"code": code, "request_id": request_id}
                    error = {"error": ids | {"message": "no", "param": None}}
                    headers = {} if seconds is None else {"Retry-After": str(seconds)}
                    self.send(_STATUSES[code], json.dumps(error).encode(), headers)
                case Answer() as answer:
                    self.send(200, json.dumps(to_json(answer)).encode())
                case bytes() as body:
                    self.send(200, body, {"Content-Type": "text/event-stream"})
                case None:
                    pass  # closes the connection

    with serving(RestHandler) as url:
        yield url


@contextmanager
def _grpc(script: Script) -> Iterator[str]:
    class Vision(VisionServicer):
        def Predict(self, _request: pb.PredictRequest, context: Any) -> pb.Answer:
            metadata = dict(context.invocation_metadata())
            key = metadata.get("authorization")
            received = Received(metadata["x-request-id"], context.time_remaining(), key)
            step = script.next_step(received)
            if step is None:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
            if isinstance(step, Refusal):
                seconds = step.retry_after_s
                delay = [] if seconds is None else [("retry-after", str(seconds))]
                context.set_trailing_metadata([("diptych-code", step.code), *delay])
                context.abort(_CODES[step.code], "no")
            return pb.Answer(text="done", **_FIELDS)

    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        add_VisionServicer_to_server(Vision(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"grpc://127.0.0.1:{port}"
        finally:
            server.stop(0).wait()
