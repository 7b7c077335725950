"""Sends questions over REST: predict, compare, and predict as a stream of server-sent events."""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient.response import HTTPParseError, HTTPResponse

from loadtest.load.senders.replies import (
    CONNECTION_FAILED,
    OK,
    TIMED_OUT,
    WRONG_ANSWER,
    ModelReply,
    Reply,
)
from loadtest.load.traffic.questions import Question

GRACE_S = 5.0  # after a request's deadline, before it counts as timed out
_CONNECT_TIMEOUT_S = 5.0
_BOUNDARY = uuid.uuid4().hex  # occurs in no request


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
        return self._post(
            "/v1/predict", question, {}, lambda body: Reply(OK, (_model_reply(_json(body)),))
        )

    def compare(self, question: Question) -> Reply:
        return self._post("/v1/compare", question, {}, lambda body: _comparison(_json(body)))

    def stream(self, question: Question) -> Reply:
        return self._post("/v1/predict", question, {"stream": "true"}, _streamed)

    def get(self, path: str) -> bytes:
        """Return a resource; raise `OSError` for any status but 200."""
        try:
            with self._http.get(path, headers=self._headers) as response:
                body = bytes(response.read())
                status = response.status_code
        except HTTPParseError as error:
            raise OSError(f"GET {path}: {error}") from error
        if status != 200:
            raise OSError(f"GET {path} failed with status {status}: {body[:200]!r}")
        return body

    def close(self) -> None:
        self._http.close()

    def _post(
        self,
        path: str,
        question: Question,
        fields: dict[str, str],
        read: Callable[[HTTPResponse], Reply],
    ) -> Reply:
        headers = self._headers | {
            "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
            "X-Deadline-Ms": f"{question.deadline_s * 1000:.0f}",
        }
        body = _multipart(question.form_fields() | fields, question.image.jpeg)
        try:
            with (
                gevent.Timeout(question.deadline_s + GRACE_S),
                self._http.post(path, body, headers) as response,
            ):
                return read(response) if response.status_code == 200 else Reply(_code(response))
        except gevent.Timeout:
            return Reply(TIMED_OUT)
        except (OSError, HTTPParseError):
            return Reply(CONNECTION_FAILED)
        except (ValueError, KeyError, TypeError):
            return Reply(WRONG_ANSWER)  # status 200 with an unknown body


def _multipart(fields: Mapping[str, str], jpeg: bytes) -> bytes:
    """Return a form with an image (RFC 7578)."""
    parts = [f'"{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(b'"image"; filename="scene.jpg"\r\nContent-Type: image/jpeg\r\n\r\n' + jpeg)
    opening = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    return b"".join(opening + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()


def _json(response: Any) -> Any:
    return json.loads(response.read())


def _code(response: Any) -> str:
    """Return the code of an error, or the status if the body has none."""
    try:
        return str(_json(response)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return f"status_{response.status_code}"


def _model_reply(answer: Mapping[str, Any]) -> ModelReply:
    image = answer["image"]
    size_wh = image["width"], image["height"]
    return ModelReply(
        answer["model"], answer["task"], tuple(answer["result"]), size_wh, answer["raw_text"]
    )


def _comparison(body: Mapping[str, Any]) -> Reply:
    """Return all answers, or the first error among them."""
    if codes := [entry["error"]["code"] for entry in body["answers"] if "error" in entry]:
        return Reply(codes[0])
    return Reply(OK, tuple(map(_model_reply, body["answers"])))


def _streamed(response: Any) -> Reply:
    """Read a stream to its end."""
    first_token_s = None
    reply = Reply(CONNECTION_FAILED)
    for name, data in _events(response):
        if name == "token" and first_token_s is None:
            first_token_s = time.monotonic()
        elif name == "error":
            reply = Reply(str(json.loads(data)["error"]["code"]))
        elif name == "result":
            reply = Reply(OK, (_model_reply(json.loads(data)),), first_token_s)
    return reply


def _events(response: Any) -> Iterator[tuple[str, str]]:
    """Yield name and data of each event as it arrives."""
    name = ""
    while line := bytes(response.readline(b"\n")).decode():
        field, _, value = line.strip().partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, value
