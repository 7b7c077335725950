"""The server span of a call, exported to a small real collector."""

import asyncio

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runners.runner_api import TracedCalls
from tests.support.trace_collector import collecting
from wire.telemetry import tracing
from wire.telemetry.tracing import TraceOptions, call_headers, span


def test_a_call_is_answered_and_its_spans_belong_to_the_trace_of_the_caller() -> None:
    async def answer(_request: Request) -> Response:
        with span("work"):
            return PlainTextResponse("done", 503)

    app = TracedCalls(Starlette(routes=[Route("/encode", answer, methods=["POST"])]))

    async def call() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://runner"
        ) as client:
            with span("call"):
                headers = call_headers()
            response = await client.post("/encode", headers=headers)
            assert (response.status_code, response.text) == (503, "done")
            await client.post("/encode")  # a probe brings no trace

    with collecting() as collector:
        tracing.start(TraceOptions(collector.url), "part")
        try:
            asyncio.run(call())
        finally:
            tracing.stop()
    (trace_id,) = {one.trace_id for one in collector.spans if one.name == "call"}
    made = {one.name: one for one in collector.spans if one.trace_id == trace_id}
    assert set(made) == {"call", "POST /encode", "work"}
    assert made["POST /encode"].parent_id == made["call"].span_id
    assert made["work"].parent_id == made["POST /encode"].span_id
    assert made["POST /encode"].kind == "SERVER"
    assert made["POST /encode"].attributes["http.response.status_code"] == 503
    assert (made["POST /encode"].has_failed, made["work"].has_failed) == (True, False)
    assert len(collector.spans) == 4
