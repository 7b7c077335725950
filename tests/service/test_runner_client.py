import aiohttp
import pytest

from service.runner_client import RunnerClient
from service.vision_cache import VisionCache
from tests.support.core_calls import run
from tests.support.fake_runners import FakeDecoder, FakeEncoder


@pytest.mark.parametrize(
    ("encoder", "decoder", "expected"),
    [
        (FakeEncoder(), FakeDecoder({}), True),
        (FakeEncoder(is_up=False), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, is_up=False), False),
        (FakeEncoder(failure=aiohttp.ClientConnectionError("refused")), FakeDecoder({}), False),
        (FakeEncoder(), FakeDecoder({}, failure=TimeoutError("late")), False),
    ],
)
def test_model_is_ready_when_both_runners_answer(encoder: FakeEncoder, decoder: FakeDecoder, expected: bool) -> None:
    assert run(RunnerClient("a", "key", encoder, decoder, VisionCache(0)).is_ready()) is expected
