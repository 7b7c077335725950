"""The events of a streamed answer, read from the bytes of the response (WHATWG HTML, "Server-sent events")."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from client.errors import ErrorDetail, connection_failed, error_of
from client.rest_messages import answer_from_json
from client.results import Answer


@dataclass(slots=True)
class EventReader:
    r"""Reads chunks that may end anywhere. Lines end with \n alone and data is one line, as the service writes them."""

    request_id: str
    is_answered: bool = False
    _rest: bytes = b""

    def read(self, chunk: bytes) -> Iterator[str | Answer]:
        """Yield the events that this chunk completes; raise `DiptychError` for an error of the service."""
        *blocks, self._rest = (self._rest + chunk).split(b"\n\n")
        for block in blocks:
            event = _event(block)
            self.is_answered = self.is_answered or isinstance(event, Answer)
            yield event

    def end(self) -> None:
        """Raise `DiptychError` where the response ends before its answer."""
        if not self.is_answered:
            raise connection_failed("the stream ended before its answer", self.request_id)


def _event(block: bytes) -> str | Answer:
    lines = dict(line.split(b": ", 1) for line in block.split(b"\n"))
    data = json.loads(lines[b"data"])
    match lines[b"event"]:
        case b"token":
            text: str = data["text"]
            return text
        case b"result":
            return answer_from_json(data)
    raise error_of(ErrorDetail(**data["error"]))
