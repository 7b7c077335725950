"""The code that one REST predict crosses, in the gateway and in a runner:
`python -m tests.support.request_path [--calls]`.

The real app, core and channel answer a form in this process, over a simulated runner. The runner is
measured apart, with the real model of the store, BentoML's batcher replaced. A request about
another image comes first, so that nothing is counted that only a first one does. Our own functions
are recorded in the order in which they begin; a coroutine that is resumed does not begin again.
"""

import asyncio
import dis
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
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
from runners.service import CallGuard, RunnerApi
from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.inference.core import Core
from service.inference.runner_calls import RunnerClient
from service.inference.served_models import ServedModels, runner_options, served_entries
from service.settings import Settings, read_settings
from tasks.families import FAMILIES
from tasks.table import TaskParameters
from tests.support.catalog import FLORENCE, ROOT
from tests.support.fake_runners import written
from tests.support.fake_service import IMAGE_SIZE_WH, encoded, served
from tests.support.rest_client import Client
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

    def __str__(self) -> str:
        """Return how many files and functions were crossed, and how often the file changed."""
        files = {file for file, _ in self.calls}
        changes = sum(first[0] != second[0] for first, second in pairwise(self.calls))
        return f"{len(files)} files, {len(set(self.calls))} functions, {changes} changes of file"

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

    async def record(self, request: Callable[[int], Awaitable[None]]) -> None:
        """Send a request about two images; record the second, in this and all later threads."""
        await request(30)
        sys.setprofile(self.profile)
        self.is_recording = True
        await request(200)
        self.is_recording = False
        sys.setprofile(None)


async def gateway_path() -> RequestPath:
    """Return the path of a form in the gateway."""
    path = RequestPath()
    threading.setprofile(path.profile)
    model = served(FLORENCE)
    app = web.Application()
    app.add_routes([web.post("/write", _write)])
    async with TestServer(app) as server:
        url = str(server.make_url("")).rstrip("/")
        runner = RunnerClient(model.id, HttpChannel(url, model.manifest.build_key, 10))
        boundary = RestBoundary(Settings())
        core = Core(ServedModels({model.id: model}), {model.id: runner}, Settings())
        boundary.start(core, ApiKeys(None))
        async with Client(boundary).http({}) as client:
            await path.record(partial(_predict, client))
        await runner.channel.close()
    return path


async def _write(request: web.Request) -> web.Response:
    await request.read()
    if request.content_type == "application/json":
        return web.Response(status=404)
    return web.json_response(text=_ANSWER)


async def _predict(client: httpx.AsyncClient, tone: int) -> None:
    """Send a form as one piece, as a server receives a small one."""
    image = encoded(Image.new("RGB", IMAGE_SIZE_WH, (tone, 30, 30)))
    fields = {"task": "object_detection"}
    request = client.build_request("POST", "/v1/predict", data=fields, files={"image": image})
    await request.aread()
    response = await client.send(request)
    assert len(response.raise_for_status().json()["result"]["detections"]) == 1


async def runner_path(model_id: str = "florence-2-mini") -> RequestPath:
    """Return the path of a call with pixels in the runner of the store."""
    from runners.in_process_channel import EncoderBatcher
    from runners.model_worker import ModelWorker  # torch

    path = RequestPath()
    threading.setprofile(path.profile)
    settings = read_settings({"DIPTYCH_MODELS": model_id})
    options = runner_options(model_id, settings, served_entries(settings))
    worker = ModelWorker(model_id, options, lambda key: batcher.encoded(key))
    batcher = EncoderBatcher(worker.encode, encoder_batch_size(options))
    worker.load()
    api = RunnerApi()
    api.start(worker)
    app = CallGuard(api.app(), api)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://runner") as client:
        await path.record(partial(_call_runner, client, worker))
    await asyncio.to_thread(worker.stop)
    return path


async def _call_runner(client: httpx.AsyncClient, worker: "ModelWorker", tone: int) -> None:
    grammar = FAMILIES["florence2"].answer_grammar(FLORENCE, "object_detection", TaskParameters())
    segments = [("Locate the objects with category name in the image.", False)]
    spec = SequenceSpec(segments=segments, grammar=grammar, max_new_tokens=16, timeout_s=60)
    pixels = np.full(worker.image_shape_hwc, tone, np.uint8)
    body, headers = body_of(WriteCall(sequences=[spec]), pixels)
    ids = {IMAGE_KEY_HEADER: f"{tone:064x}", BUILD_HEADER: worker.build_key}
    response = await client.post("/write", content=body, headers=headers | ids)
    outcomes = Outcomes.model_validate_json(response.raise_for_status().content).outcomes
    assert [outcome.kind for outcome in outcomes] == ["written"]


def main() -> None:
    prints_calls = "--calls" in sys.argv
    paths = {"gateway": asyncio.run(gateway_path()), "runner": asyncio.run(runner_path())}
    for name, path in paths.items():
        if prints_calls:
            print(*(f"{file}  {function}" for file, function in path.calls), sep="\n")
        print(f"{name}: {path}", flush=True)
    print(f"both: {RequestPath(paths['gateway'].calls + paths['runner'].calls)}", flush=True)
    os._exit(0)  # the threads of the runner are not to be joined


if __name__ == "__main__":
    main()
