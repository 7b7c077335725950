"""Answers one request of a batch as POST to its url would, as a line of a file.

A request that met a busy service or a runner that is not there is repeated until the batch ends.
Its line is in memory while it is answered, and counts with what is parsed of it as memory of
requests, like the bodies of online ones.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pydantic import BaseModel

from service.admission.quotas import NO_LIMITS, Quota
from service.analysis.execution import analyze
from service.batches.lines import (
    InputFile,
    LineSpan,
    OutputLine,
    OutputResponse,
    RenderedLine,
    parse_line,
)
from service.batches.wire import BatchLine
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from service.http.body import BodyMemory, missing_image, parse_image, parsed
from service.http.boundary import STATUSES, error_json
from service.http.json_values import check_texts
from service.images.decoding import in_thread
from service.inference.core import Core, RequestContext
from service.inference.recording import record_failure
from service.openai.api import complete, error_body
from service.openai.wire import ChatRequest
from service.schema.analysis import analysis_json
from service.schema.rendering import answer_json, comparison_json
from service.validation import validated

API = "batch"  # label in metrics
# The name in the fair queue; no API key can have it. Keys' limits count online requests only.
_QUOTA = Quota("(batches)", NO_LIMITS)
_CHAT = "/v1/chat/completions"
_OK = 200
_RETRY_AFTER_S = 1.0
_MAX_LATE = 3  # attempts that may miss their deadline: a runner may have been stuck


class FiledRequest:
    """A request of an input file, until it is answered."""

    def __init__(self, source: InputFile, span: LineSpan, core: Core, timeout_s: float) -> None:
        self._source = source
        self._span = span
        self._core = core
        self._timeout_s = timeout_s
        self._request_id = uuid.uuid4().hex
        self._num_late = 0

    async def answered(self, is_stopped: Callable[[], bool]) -> RenderedLine | None:
        """Return the line of the answer or error, or None if the batch stops; raise `OSError`."""
        while (output := await self._attempt()) is None and not is_stopped():
            await asyncio.sleep(_RETRY_AFTER_S)
        return output

    async def _attempt(self) -> RenderedLine | None:
        """Return the line, or None if the request is to be repeated."""
        deadline_s = time.monotonic() + self._timeout_s
        context = RequestContext(self._request_id, API, deadline_s, _QUOTA, needs_place=False)
        line = None
        try:
            line = await self._read(context)
            check_texts(line.body)
            body = await _answer(line, self._core, context)
            return _rendered(line, context, _OK, body.model_dump(mode="json"))
        except Exception as error:  # a defect at one request must not end its batch
            is_late = isinstance(error, DeadlineExceeded)
            self._num_late += is_late
            if isinstance(error, Overloaded | NotReady) or (is_late and self._num_late < _MAX_LATE):
                return None
            if line is None:
                raise
            failure = record_failure(error, API, context.request_id)
            error_form = error_body if line.url == _CHAT else error_json
            form = error_form(failure, context.request_id)
            return _rendered(line, context, STATUSES[failure.code], form)
        finally:
            await self._core.leave(context)

    async def _read(self, context: RequestContext) -> BatchLine:
        """Return the line, held until the attempt ends; raise `Overloaded` without memory."""
        self._core.hold(context, self._span.num_bytes)
        data = await in_thread(self._source.read, self._span)
        return await parsed(
            parse_line, data, BodyMemory(len(data), partial(self._core.hold, context))
        )


def _rendered(
    line: BatchLine, context: RequestContext, status: int, body: Mapping[str, Any]
) -> RenderedLine:
    response = OutputResponse(status_code=status, request_id=context.request_id, body=dict(body))
    return OutputLine(
        id=f"batch_req_{context.request_id}", custom_id=line.custom_id, response=response
    ).rendered()


async def _answer(line: BatchLine, core: Core, context: RequestContext) -> BaseModel:
    """Return the body of the answer, as that of the endpoint that the line names."""
    if line.url == _CHAT:
        chat = validated(ChatRequest, line.body)
        _check_whole(chat.stream)
        return await complete(chat, core, context)
    if "image" not in line.body:
        raise missing_image()
    fields = {name: value for name, value in line.body.items() if name != "image"}
    image = await in_thread(parse_image, line.body["image"])
    if line.url == "/v1/compare":
        return comparison_json(await core.compare(image, fields, context), context.request_id)
    _check_whole(fields.get("stream") is True)
    if line.url == "/v1/analyze":
        return analysis_json(await analyze(core, image, fields, context), context.request_id)
    return answer_json(await core.predict(image, fields, context), context.request_id)


def _check_whole(is_streamed: bool) -> None:
    if is_streamed:
        message = "stream is true; a request of a batch is answered as a whole"
        raise InvalidRequest(message, "stream")
