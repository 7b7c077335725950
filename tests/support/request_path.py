"""The code that one REST predict crosses in the gateway: `python -m tests.support.request_path
[--calls]`.

The real app, core and channel answer a form in this process: object detection, with an image that
the gateway has not seen. A simulated runner answers over TCP. A request about another image comes
first, so that nothing is counted that only a first one does. Our own functions are recorded in all
threads in the order in which they begin; a coroutine that is resumed does not begin again.
"""

import argparse
import asyncio
import dis
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import FrameType

import httpx
from aiohttp import web
from aiohttp.test_utils import TestServer
from PIL import Image

from imaging.files import ImageLimits
from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http.middleware import SecurityHeaders, TracedRequests
from service.http_app import rest_app
from service.inference.core import Core, CoreLimits
from service.inference.served_models import ServedModels
from service.runner_client.runner_client import RunnerClient
from service.settings import Settings
from tests.support.catalog import FLORENCE, ROOT
from tests.support.fake_runners import written
from tests.support.fake_service import IMAGE_SIZE_WH, encoded, served
from wire.http_channel import HttpChannel
from wire.runner_messages import FoundFeatures, Outcomes

_WRITTEN = written("red circle<loc_100><loc_200><loc_500><loc_600>")
_ANSWER = Outcomes(features=FoundFeatures(outcome="miss"), outcomes=[_WRITTEN]).model_dump_json()
_RESUME = dis.opmap["RESUME"]
_INLINE = ("<genexpr>", "<listcomp>", "<dictcomp>", "<setcomp>")  # read where they stand
FOLDERS = tuple(f"{ROOT / name}/" for name in ("service", "runners", "wire", "imaging", "tasks"))


@dataclass(slots=True)
class RequestPath:
    """The functions that were called, in order: (file, function)."""

    calls: list[tuple[str, str]] = field(default_factory=list)

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


@contextmanager
def recorded(path: RequestPath) -> Iterator[None]:
    """Record the calls of this thread, and of those that start meanwhile."""

    def profile(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or code.co_name in _INLINE or not code.co_filename.startswith(FOLDERS):
            return
        file = code.co_filename
        # RESUME has another argument than 0 after a yield or an await
        if tuple(code.co_code[frame.f_lasti : frame.f_lasti + 2]) == (_RESUME, 0):
            path.calls.append((str(Path(file).relative_to(ROOT)), code.co_qualname))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


async def request_path() -> RequestPath:
    """Answer two requests about different images, and return the path of the second."""
    path = RequestPath()
    model = served(FLORENCE)
    async with TestServer(_runner()) as server:
        channel = HttpChannel(str(server.make_url("")).rstrip("/"), model.manifest.build_key, 10)
        runner = RunnerClient(model.id, channel)
        boundary = RestBoundary(Settings())
        limits = CoreLimits(
            ImageLimits(1_000_000), 2, 64, 24, 200_000, 1_000_000_000, 1_000_000_000
        )
        core = Core(ServedModels({model.id: model}), {model.id: runner}, limits)
        boundary.start(core, ApiKeys(None))
        transport = httpx.ASGITransport(TracedRequests(SecurityHeaders(rest_app(boundary))))
        async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
            await _predict(client, (200, 30, 30))
            # its threads are recorded
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
            with recorded(path):
                await _predict(client, (30, 30, 200))
        await runner.close()
    return path


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


def main() -> None:
    """Print the counts, and the calls where asked."""
    parser = argparse.ArgumentParser(
        "python -m tests.support.request_path", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--calls", action="store_true", help="print every call")
    given = parser.parse_args()
    path = asyncio.run(request_path())
    if given.calls:
        print(*(f"{file}  {function}" for file, function in path.calls), sep="\n")
    print(
        f"{len(path.files)} files, {len(path.functions)} functions, {path.num_changes} changes of"
        " file"
    )


if __name__ == "__main__":
    main()
