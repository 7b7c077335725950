import asyncio
from dataclasses import replace

import pytest

from runners.service import make_runner_service
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.catalog import FLORENCE


# BentoML 1.4.40 uses what pathspec and pydantic have deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gpu_that_is_not_visible_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    options = replace(runner_options(FLORENCE.id, Settings(), ()), gpu=1)
    runner = make_runner_service(FLORENCE.id, options).inner()
    with pytest.raises(RuntimeError, match="cuda:1 is requested"):
        asyncio.run(runner.load())
