import asyncio

import pytest

from service.errors import Overloaded
from service.inference.core import Comparison
from tests.support.core_calls import codes, compare, florence_fails, run, until
from tests.support.fake_runners import FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PALIGEMMA_ID,
    PNG,
    context,
    make_core,
)
from wire.runner_channel import CallFailed, CallTimedOut, RunnerUnreachable


def test_comparison_is_in_the_order_of_the_catalog() -> None:
    for models in (None, [PALIGEMMA_ID, FLORENCE_ID], [PALIGEMMA_ID, FLORENCE_ID, PALIGEMMA_ID]):
        comparison = compare(make_core(), task="ocr", models=models)
        assert list(codes(comparison)) == [FLORENCE_ID, PALIGEMMA_ID]
        assert comparison.image_size_wh == IMAGE_SIZE_WH


def test_comparison_without_models_uses_all_that_offer_the_task() -> None:
    assert codes(compare(make_core(), task="object_detection")) == {FLORENCE_ID: "ok"}


def test_named_model_that_does_not_offer_the_task_gets_its_own_error() -> None:
    comparison = compare(make_core(), task="object_detection", models=[FLORENCE_ID, PALIGEMMA_ID])
    assert codes(comparison) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "unsupported_task"}


def test_model_without_the_variant_gets_its_own_error() -> None:
    comparison = compare(
        make_core(
            decoders={
                FLORENCE_ID: FakeDecoder(
                    {"Describe with a paragraph what is shown in the image.": "a"}
                )
            }
        ),
        task="captioning",
        detail="paragraph",
    )
    assert codes(comparison) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "unsupported_task"}


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (RunnerUnreachable("refused"), "not_ready"),
        (CallTimedOut("late"), "deadline_exceeded"),
        (CallFailed("status 500"), "internal"),
        (RuntimeError("a defect"), "internal"),
    ],
)
def test_failing_model_does_not_fail_the_others(failure: Exception, code: str) -> None:
    assert codes(compare(florence_fails(failure), task="ocr")) == {
        FLORENCE_ID: code,
        PALIGEMMA_ID: "ok",
    }


def test_models_of_a_comparison_run_concurrently() -> None:
    """Each encoder waits until the other is called."""

    async def both() -> Comparison:
        released = asyncio.Event()
        waiting = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: waiting, PALIGEMMA_ID: waiting})
        task = asyncio.create_task(core.compare(PNG, {"task": "ocr"}, context()))
        while len(waiting.shapes) < 2:
            await asyncio.sleep(0.001)
        released.set()
        return await task

    assert codes(run(asyncio.wait_for(both(), 60))) == {FLORENCE_ID: "ok", PALIGEMMA_ID: "ok"}


def test_slow_model_does_not_fail_the_others() -> None:
    async def one_never_answers() -> Comparison:
        core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
        return await core.compare(PNG, {"task": "ocr"}, context(timeout_s=2))

    assert codes(run(one_never_answers())) == {FLORENCE_ID: "deadline_exceeded", PALIGEMMA_ID: "ok"}


def test_comparison_that_every_model_refuses_is_refused() -> None:
    async def compare_twice() -> Comparison:
        encoders = {
            model_id: FakeEncoder(released=asyncio.Event())
            for model_id in (FLORENCE_ID, PALIGEMMA_ID)
        }
        core = make_core(encoders=encoders, max_running=1, max_waiting_tokens=1)
        first = asyncio.create_task(core.compare(PNG, {"task": "ocr"}, context()))
        await until(lambda: all(encoder.shapes for encoder in encoders.values()))
        try:
            return await core.compare(PNG, {"task": "ocr"}, context())
        finally:
            first.cancel()

    with pytest.raises(Overloaded, match="tokens queued for florence-2-mini"):
        run(asyncio.wait_for(compare_twice(), 60))
