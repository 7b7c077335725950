"""Places and memory of a call: kept until its last task is answered, the place lent to one answer
at a time.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from service.admission.api_keys import ApiKeys
from service.errors import DeadlineExceeded, Overloaded
from service.http.body import parsed_bytes
from service.images.fetching import ImageFetcher
from service.images.inputs import AllowedHost
from service.inference.core import Core
from service.label_studio.api import Batch, questions_of
from service.label_studio.images import TaskImages
from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.core_calls import until
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PNG,
    context,
    data_url,
    encoded,
    make_core,
)
from tests.support.image_hosts import ImageHost, Names, listening, response
from tests.support.label_studio_config import basic_auth, labelled, view
from tests.support.rest_client import client
from wire.runner_messages import Outcome, SequenceSpec

PATH = f"/integrations/label-studio/{FLORENCE_ID}"
CONFIG = view(
    labelled("RectangleLabels", "red circle"), '<TextArea name="caption" toName="image"/>'
)
SETTINGS = Settings(max_body_bytes=10_000_000, request_timeout_s=60)


class BusyDecoder(FakeDecoder):
    """Counts the calls that it answers."""

    def __init__(self, released: asyncio.Event | None = None) -> None:
        super().__init__(FLORENCE_ANSWERS, released=released)
        self.num_running = 0

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        self.num_running += 1
        try:
            return await super().write(image_features, sequences)
        finally:
            self.num_running -= 1


def service(core: Core, keys: ApiKeys | None = None) -> httpx.AsyncClient:
    return client(core, keys, SETTINGS).http(basic_auth("secret") if keys else {})


def body(*images: str, rest: Mapping[str, object] | None = None) -> dict[str, Any]:
    tasks = [{"data": {"image": image, **(rest or {})}, **(rest or {})} for image in images]
    return {"tasks": tasks, "label_config": CONFIG}


def num_results(response: httpx.Response) -> list[int]:
    """Return the number of results of region task."""
    assert response.status_code == 200, response.text
    return [len(prediction["result"]) for (prediction,) in response.json()["results"]]


async def test_call_keeps_its_place() -> None:
    released = asyncio.Event()
    decoder = BusyDecoder(released)
    core = make_core(decoders={FLORENCE_ID: decoder})
    async with service(core, api_keys("secret", "max_concurrent=1")) as http:
        calling = asyncio.create_task(http.post(f"{PATH}/predict", json=body(data_url(PNG))))
        await until(lambda: decoder.num_running)
        refused = await http.post(f"{PATH}/setup", json={"schema": CONFIG})
        assert (refused.status_code, "1 concurrent requests" in refused.text) == (429, True)
        released.set()
        assert num_results(await calling) == [2]
        assert (await http.post(f"{PATH}/setup", json={"schema": CONFIG})).status_code == 200


@asynccontextmanager
async def images_by_url(
    decoder: FakeDecoder, max_bytes: int
) -> AsyncIterator[tuple[Core, ImageHost, str]]:
    """Yield a core that fetches images, their host, and the URL of one."""
    async with listening(ImageHost({"/a.png": response(PNG)})) as host:
        names = Names({"images.test": ["127.0.0.1"]})
        allowed = [AllowedHost("images.test", host.port)]
        fetcher = ImageFetcher(allowed, 1_000_000, 5, lambda _: True, names)
        core = make_core(decoders={FLORENCE_ID: decoder}, fetcher=fetcher, max_bytes=max_bytes)
        yield core, host, f"http://images.test:{host.port}/a.png"


async def test_fetched_images_are_counted() -> None:
    released = asyncio.Event()
    decoder = BusyDecoder(released)
    async with images_by_url(decoder, 1_000_000) as (core, host, url), service(core) as http:
        calling = asyncio.create_task(http.post(f"{PATH}/predict", json=body(*[url] * 6)))
        await until(lambda: decoder.num_running == 7)  # of 8 slots
        call = json.dumps(body(*[url] * 6)).encode()
        held = core.places.num_bytes - len(call) - parsed_bytes(call)
        assert held == pytest.approx(4 * len(PNG), abs=100)
        assert len(host.requests) == 4
        released.set()
        assert num_results(await calling) == [2] * 6
        assert core.places.num_bytes == 0


async def outcomes(
    core: Core, *tasks: object, config: str = CONFIG, timeout_s: float = 60
) -> list[bytes]:
    questions = questions_of([core.models.get(FLORENCE_ID)], config, None)
    call = Batch(core, TaskImages(core, None, ""), context(timeout_s=timeout_s))
    return await call.outcomes(tasks, questions)


def test_predictions_are_counted() -> None:
    """A task whose predictions do not fit is tried again with the next call."""

    def predict(num_tasks: int, max_bytes: int) -> list[bytes]:
        tasks = [{"image": data_url(PNG)}] * num_tasks
        return asyncio.run(outcomes(make_core(max_bytes=max_bytes), *tasks))

    (outcome,) = predict(1, 1_000_000)
    lengths = sorted(map(len, predict(3, 3 * len(outcome) // 2)))
    assert lengths == [len(b"[]"), len(b"[]"), len(outcome)]
    with pytest.raises(Overloaded, match="bytes of requests in memory"):
        predict(1, len(outcome) - 1)


def test_tag_has_its_own_image() -> None:
    config = view(
        '<Image name="other" value="$second"/>',
        '<TextArea name="of first" toName="image"/>',
        '<TextArea name="of second" toName="other"/>',
    )
    second = encoded(Image.new("RGB", (100, 50)))
    sources = {"image": data_url(PNG), "second": data_url(second)}
    (outcome,) = asyncio.run(outcomes(make_core(), sources, config=config))
    (prediction,) = json.loads(outcome)
    widths = [(region["from_name"], region["original_width"]) for region in prediction["result"]]
    assert widths == [("of first", IMAGE_SIZE_WH[0]), ("of second", 100)]


def test_task_after_the_deadline_is_not_read() -> None:
    with pytest.raises(DeadlineExceeded, match="before this task"):
        asyncio.run(outcomes(make_core(), {"image": data_url(PNG)}, timeout_s=-1))
