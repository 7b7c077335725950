"""Sends questions over REST: predict, compare, and predict as a stream of server-sent events."""

import json
import time
import uuid
from collections.abc import Callable, Mapping
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
        """Return all answers, or the first error among them."""

        def read(response: HTTPResponse) -> Reply:
            answers = _json(response)["answers"]
            if codes := [entry["error"]["code"] for entry in answers if "error" in entry]:
                return Reply(codes[0])
            return Reply(OK, tuple(map(_model_reply, answers)))

        return self._post("/v1/compare", question, {}, read)

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
        # a form with an image (RFC 7578)
        values = (question.form_fields() | fields).items()
        parts = [f'"{name}"\r\n\r\n{value}'.encode() for name, value in values]
        opening = b'"image"; filename="scene.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        parts.append(opening + question.image.jpeg)
        start = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
        body = b"".join(start + part + b"\r\n" for part in parts) + f"--{_BOUNDARY}--\r\n".encode()
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


def _streamed(response: Any) -> Reply:
    """Read a stream to its end."""
    first_token_s = None
    reply = Reply(CONNECTION_FAILED)
    name = ""
    while line := bytes(response.readline(b"\n")).decode():
        field, _, value = line.strip().partition(": ")
        if field == "event":
            name = value
        elif field != "data":
            continue
        elif name == "token":
            first_token_s = first_token_s or time.monotonic()
        elif name == "error":
            reply = Reply(str(json.loads(value)["error"]["code"]))
        elif name == "result":
            reply = Reply(OK, (_model_reply(json.loads(value)),), first_token_s)
    return reply
