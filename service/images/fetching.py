"""Fetches images from URLs in requests, through the process of outbound calls."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from service.admission.places import RequestContext
from service.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded, ServiceError
from service.images.inputs import ImageUrl
from service.outbound.messages import CallError, FileCall, OutboundCalls
from service.outbound.urls import AllowedHost

FETCH_TIMEOUT_S = 10.0  # one image; a request has 60 s by default, for its answer too


@dataclass(frozen=True, slots=True)
class ImageFetcher:
    """Fetches images from the allowed hosts, whose addresses must be public by default."""

    allowed: Sequence[AllowedHost]
    max_bytes: int
    calls: OutboundCalls
    timeout_s: float = FETCH_TIMEOUT_S
    may_be_private: bool = False

    async def fetch(
        self,
        url: ImageUrl,
        context: RequestContext,
        hold: Callable[[int], None],
        authorization: str | None = None,
    ) -> bytes:
        """Return the body at a URL, counted by `hold`; every host receives the authorization."""
        timeout_s = min(self.timeout_s, context.deadline_s - time.monotonic())
        call = FileCall(
            url=url.text,
            headers={} if authorization is None else {"Authorization": authorization},
            timeout_s=timeout_s,
            allowed=list(self.allowed),
            may_be_private=self.may_be_private,
            max_bytes=self.max_bytes,
            client=context.quota.name,
        )
        body = bytearray()
        try:
            async with asyncio.timeout(timeout_s), aclosing(self.calls.run(call)) as pieces:
                async for piece in pieces:
                    assert isinstance(piece, bytes), "a file has no other events"
                    hold(len(piece))
                    body += piece
        except CallError as error:
            raise _service_error(error) from error
        except TimeoutError as error:
            problem = "the image could not be fetched from its URL"
            if time.monotonic() >= context.deadline_s:
                raise DeadlineExceeded(f"{problem} before the deadline") from error
            raise InvalidRequest(f"{problem} within {self.timeout_s:g} s", "image") from error
        return bytes(body)


def _service_error(error: CallError) -> ServiceError:
    match error.reason:
        case "invalid_request":
            return InvalidRequest(error.message, "image")
        case "payload_too_large":
            return ServiceError(error.message, "image", "payload_too_large")
        case "overloaded":
            return Overloaded(error.message)
        case _:
            return NotReady("the process that fetches images ended; retry the request")
