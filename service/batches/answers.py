"""Answers one request of a batch: what POST to its url would answer, as a line of the output or the error file.

A request that met a busy service or a runner that is not there is repeated until the batch ends. It knows no files.
"""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from service.admission.quotas import NO_LIMITS, Quota
from service.batches.lines import OutputLine, OutputResponse
from service.batches.wire import BatchLine, Endpoint
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, ServiceError
from service.http.body import missing_image, parse_image
from service.http.boundary import STATUSES, ErrorForm, error_json
from service.images.decoding import in_thread
from service.images.url_rules import ImageInput
from service.inference.core import Core, RequestContext
from service.inference.recording import record_failure
from service.openai.api import complete, error_body, read_chat
from service.schema.rendering import answer_json, comparison_json

API = "batch"  # label in metrics
# Its name is the client's in the fair queue; no API key can have it. The limits of keys count online requests.
_QUOTA = Quota("(batches)", NO_LIMITS)
_OK = 200
_RETRY_AFTER_S = 1.0
_MAX_LATE = 3  # attempts that may miss their deadline: a runner may have been stuck

Body = dict[str, Any]


async def answered(line: BatchLine, core: Core, timeout_s: float, is_stopped: Callable[[], bool]) -> OutputLine | None:
    """Return the line with the answer or the error of a request; None if its batch stops before there is one."""
    context = RequestContext(uuid.uuid4().hex, API, 0.0, _QUOTA, needs_place=False)
    answer, error_form = _ENDPOINTS[line.url]  # type: ignore[index]  # the file was checked
    num_late = 0
    while True:
        context = replace(context, deadline_s=time.monotonic() + timeout_s)
        try:
            body = await answer(line.body, core, context)
        except Exception as error:  # a defect at one request must not end its batch
            num_late += isinstance(error, DeadlineExceeded)
            if not _is_temporary(error) and not 0 < num_late < _MAX_LATE:
                failure = record_failure(error, API, context.request_id)
                return _line(line, context, STATUSES[failure.code], dict(error_form(failure, context.request_id)))
            if is_stopped():
                return None
            await asyncio.sleep(_RETRY_AFTER_S)
        else:
            return _line(line, context, _OK, body.model_dump(mode="json"))


def _is_temporary(error: Exception) -> bool:
    return isinstance(error, Overloaded | NotReady)


def _line(line: BatchLine, context: RequestContext, status: int, body: Body) -> OutputLine:
    response = OutputResponse(status_code=status, request_id=context.request_id, body=body)
    return OutputLine(id=f"batch_req_{context.request_id}", custom_id=line.custom_id, response=response)


async def _chat(body: Body, core: Core, context: RequestContext) -> BaseModel:
    chat = read_chat(body)
    if chat.stream:
        raise _streamed()
    return await complete(chat, core, context)


async def _predict(body: Body, core: Core, context: RequestContext) -> BaseModel:
    image, fields = await _image_and_fields(body)
    if fields.get("stream") is True:
        raise _streamed()
    return answer_json(await core.predict(image, fields, context), context.request_id)


async def _compare(body: Body, core: Core, context: RequestContext) -> BaseModel:
    image, fields = await _image_and_fields(body)
    return comparison_json(await core.compare(image, fields, context), context.request_id)


async def _image_and_fields(body: Body) -> tuple[ImageInput, Body]:
    if "image" not in body:
        raise missing_image()
    fields = {name: value for name, value in body.items() if name != "image"}
    return await in_thread(parse_image, body["image"]), fields


def _streamed() -> ServiceError:
    return InvalidRequest("stream is true; a request of a batch is answered as a whole", "stream")


_ENDPOINTS: dict[Endpoint, tuple[Callable[[Body, Core, RequestContext], Awaitable[BaseModel]], ErrorForm]] = {
    "/v1/chat/completions": (_chat, error_body),
    "/v1/predict": (_predict, error_json),
    "/v1/compare": (_compare, error_json),
}
