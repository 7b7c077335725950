"""POST /v1/analyze: many questions about one image, or about each of several."""

import json
from collections.abc import Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.analysis.execution import Analysis, StepAnswer, analyze, stream_analysis
from service.http.body import read_images_body
from service.http.boundary import REST, RestBoundary, answered, single_image
from service.http.server_sent_events import event_stream, server_sent_event
from service.images.url_rules import ImageInput
from service.inference.core import RequestContext
from service.schema.analysis import AnalysisJson, analysis_json, step_answer_json


class AnalysisApi:
    """The endpoint of analyses."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary

    def routes(self) -> list[Route]:
        endpoint = self._boundary.endpoint
        return [Route("/v1/analyze", endpoint(self.analyze), methods=["POST"])]

    async def analyze(self, request: Request, context: RequestContext) -> Response:
        """Answer all steps: a body, or a stream of the answers and then the body."""
        core = self._boundary.core()
        body = await self._boundary.read(read_images_body, request, context)
        if body.fields.get("stream") is True:

            def form(event: StepAnswer | Analysis) -> Iterator[str]:
                if isinstance(event, StepAnswer):
                    answer = step_answer_json(event, context.request_id).model_dump(mode="json")
                    text = json.dumps({"step": event.step_id, **answer})
                    yield server_sent_event(text, "answer")
                else:
                    analysis = analysis_json(event, context.request_id)
                    yield server_sent_event(analysis.model_dump_json(), "result")

            events = stream_analysis(core, single_image(body), body.fields, context)
            return await event_stream(request, context, REST, events, form)

        async def ask(image: ImageInput, own: RequestContext) -> AnalysisJson:
            return analysis_json(await analyze(core, image, body.fields, own), own.request_id)

        return await answered(core, request, context, body, ask)
