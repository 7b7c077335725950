"""Calls of a core over fake runners."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from service.errors import ServiceError
from service.inference.core import Comparison, Core
from service.inference.prediction import Answer
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, PNG, context, make_core

T = TypeVar("T")
OD_PROMPT = "Locate the objects with category name in the image."


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


async def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


def predict(core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any) -> Answer:
    return run(core.predict(image, fields, context(timeout_s=timeout_s)))


def compare(
    core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any
) -> Comparison:
    return run(core.compare(image, fields, context(timeout_s=timeout_s)))


def codes(comparison: Comparison) -> dict[str, str]:
    return {
        model.id: outcome.code if isinstance(outcome, ServiceError) else "ok"
        for model, outcome in comparison.answers
    }


def florence_fails(failure: Exception) -> Core:
    return make_core(decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, failure=failure)})
