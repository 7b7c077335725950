"""The code that one REST predict crosses, in the gateway and in a runner:
`python -m tests.support.request_path [--calls]`.

The real app, core and channel answer a form in this process: object detection, with an image that
the gateway has not seen. A simulated runner answers over TCP. The runner is measured apart, from
its middleware to its decoder: with the real model of the store, in this process, BentoML's batcher
replaced. A request about another image comes first, so that nothing is counted that only a first
one does. Our own functions are recorded in all threads in the order in which they begin; a
coroutine that is resumed does not begin again.
"""

import argparse
import asyncio
import dis
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import httpx
import numpy as np
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from runners.options import encoder_batch_size
from runners.runner_api import CallGuard, RunnerApi
from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http.middleware import Middleware
from service.http_app import rest_app
from service.inference.core import Core
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import (
    ServedModel,
    ServedModels,
    runner_options,
    served_entries,
)
from service.settings import Settings, read_settings
from tasks.families import FAMILIES
from tasks.table import TaskParameters
from tests.support.catalog import FLORENCE, ROOT
from tests.support.fake_runners import written
from tests.support.fake_service import IMAGE_SIZE_WH, encoded, served
from wire.drain import CallsInFlight
from wire.http_channel import HttpChannel
from wire.pixels import BUILD_HEADER, IMAGE_KEY_HEADER, body_of
from wire.runner_messages import FoundFeatures, Outcomes, SequenceSpec, WriteCall

if TYPE_CHECKING:
    from runners.model_worker import ModelWorker

_WRITTEN = written("red circle<loc_100><loc_200><loc_500><loc_600>")
_ANSWER = Outcomes(features=FoundFeatures(outcome="miss"), outcomes=[_WRITTEN]).model_dump_json()
_RESUME = dis.opmap["RESUME"]
_INLINE = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")  # read where they stand
FOLDERS = tuple(f"{ROOT / name}/" for name in ("service", "runners", "wire", "imaging", "tasks"))


@dataclass(slots=True)
class RequestPath:
    """The functions that were called, in order: (file, function)."""

    calls: list[tuple[str, str]] = field(default_factory=list)
    is_recording: bool = False

    @property
    def files(self) -> set[str]:
        """The files that were crossed."""
        return {file for file, _ in self.calls}

    @property
    def functions(self) -> set[tuple[str, str]]:
        """The functions that were called."""
        return set(self.calls)

    @property
    def num_changes(self) -> int:
        """How often a call lies in another file than the one before."""
        return sum(first[0] != second[0] for first, second in pairwise(self.calls))

    def profile(self, frame: FrameType, event: str, _argument: object) -> None:
        """Record a call of one of our functions; for `sys.setprofile`."""
        code = frame.f_code
        if not self.is_recording or event != "call" or code.co_name in _INLINE:
            return
        # RESUME has another argument than 0 after a yield or an await
        is_begun = tuple(code.co_code[frame.f_lasti : frame.f_lasti + 2]) == (_RESUME, 0)
        if is_begun and code.co_filename.startswith(FOLDERS):
            file = str(Path(code.co_filename).relative_to(ROOT))
            self.calls.append((file, code.co_qualname))

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Watch the threads that start meanwhile."""
        threading.setprofile(self.profile)
        try:
            yield
        finally:
            threading.setprofile(None)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record the calls of this thread and of those that are watched."""
        sys.setprofile(self.profile)
        self.is_recording = True
        try:
            yield
        finally:
            self.is_recording = False
            sys.setprofile(None)


async def request_path() -> RequestPath:
    """Answer two requests about different images; return the path of the second in the gateway."""
    path = RequestPath()
    model = served(FLORENCE)
    with path.threads():
        async with TestServer(_runner()) as server:
            await _record_gateway(path, model, str(server.make_url("")).rstrip("/"))
    return path


async def _record_gateway(path: RequestPath, model: ServedModel, url: str) -> None:
    runner = RunnerClient(model.id, HttpChannel(url, model.manifest.build_key, 10))
    boundary = RestBoundary(Settings())
    core = Core(ServedModels({model.id: model}), {model.id: runner}, Settings())
    boundary.start(core, ApiKeys(None))
    transport = httpx.ASGITransport(Middleware(rest_app(boundary), boundary))
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        await _predict(client, (200, 30, 30))
        with path.recorded():
            await _predict(client, (30, 30, 200))
    await runner.channel.close()


async def _predict(client: httpx.AsyncClient, color: tuple[int, int, int]) -> None:
    """Send a form as one piece, as a server receives a small one."""
    image = encoded(Image.new("RGB", IMAGE_SIZE_WH, color))
    fields = {"task": "object_detection"}
    request = client.build_request("POST", "/v1/predict", data=fields, files={"image": image})
    await request.aread()
    response = await client.send(request)
    assert len(response.raise_for_status().json()["result"]["detections"]) == 1


def _runner() -> web.Application:
    """Return a runner that answers every call with pixels by one box, and no other."""
    app = web.Application()
    app.add_routes([web.post("/write", _write)])
    return app


async def _write(request: web.Request) -> web.Response:
    await request.read()
    if request.content_type == "application/json":
        return web.Response(status=404)
    return web.json_response(text=_ANSWER)


async def runner_path(model_id: str = "florence-2-mini") -> RequestPath:
    """Answer two calls with pixels; return the path of the second in the runner of the store."""
    from runners.in_process_channel import EncoderBatcher
    from runners.model_worker import ModelWorker  # torch

    path = RequestPath()
    settings = read_settings({"DIPTYCH_MODELS": model_id})
    options = runner_options(model_id, settings, served_entries(settings))
    worker = ModelWorker(model_id, options, lambda key: batcher.encoded(key))
    batcher = EncoderBatcher(worker.encode, encoder_batch_size(options))
    with path.threads():
        worker.load()
        api = RunnerApi()
        api.start(worker)
        app = CallGuard(CallsInFlight().middleware(api.app()), api)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
            await _write_about(client, worker, 30)
            with path.recorded():
                await _write_about(client, worker, 200)
    await asyncio.to_thread(worker.stop)
    return path


async def _write_about(client: httpx.AsyncClient, worker: "ModelWorker", tone: int) -> None:
    """Detect the objects of an image of one tone."""
    task = FAMILIES["florence2"]
    grammar = task.answer_grammar(FLORENCE, "object_detection", TaskParameters())
    segments = [("Locate the objects with category name in the image.", False)]
    spec = SequenceSpec(segments=segments, grammar=grammar, max_new_tokens=16, timeout_s=60)
    pixels = np.full(worker.image_shape_hwc, tone, np.uint8)
    body, headers = body_of(WriteCall(sequences=[spec]), pixels)
    ids = {IMAGE_KEY_HEADER: f"{tone:064x}", BUILD_HEADER: worker.build_key}
    response = await client.post("/write", content=body, headers=headers | ids)
    outcomes = Outcomes.model_validate_json(response.raise_for_status().content).outcomes
    assert [outcome.kind for outcome in outcomes] == ["written"]


def main() -> None:
    """Print the counts of the gateway, of the runner and of both, and the calls on request."""
    parser = argparse.ArgumentParser(
        "python -m tests.support.request_path", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--calls", action="store_true", help="print every call")
    prints_calls = parser.parse_args().calls
    gateway = asyncio.run(request_path())
    runner = asyncio.run(runner_path())
    both = RequestPath([*gateway.calls, *runner.calls])
    for name, path in {"gateway": gateway, "runner": runner, "both": both}.items():
        if prints_calls and path is not both:
            print(*(f"{file}  {function}" for file, function in path.calls), sep="\n")
        counts = f"{len(path.files)} files, {len(path.functions)} functions"
        print(f"{name}: {counts}, {path.num_changes} changes of file", flush=True)
    os._exit(0)  # the threads of the runner are not to be joined


if __name__ == "__main__":
    main()
