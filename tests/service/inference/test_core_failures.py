import asyncio

import pytest

from service.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InternalError,
    InvalidRequest,
    NotReady,
    Overloaded,
    ServiceError,
    UnsupportedImage,
)
from service.inference.prediction import Answer
from tests.support.core_calls import OD_PROMPT, compare, predict, run
from tests.support.fake_runners import FakeDecoder, FakeEncoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PNG,
    context,
    make_core,
)
from wire.runner_channel import CallTimedOut, RunnerUnreachable
from wire.runner_messages import Failed, FailureCode


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (RunnerUnreachable("refused"), NotReady),
        (CallTimedOut("late"), DeadlineExceeded),
        (RuntimeError("secret detail"), InternalError),
    ],
)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_failure_of_a_runner_is_a_service_error(
    failure: Exception, error: type[ServiceError], part: str
) -> None:
    encoder = FakeEncoder(failure=failure if part == "encoder" else None)
    decoder = FakeDecoder(FLORENCE_ANSWERS, failure=failure if part == "decoder" else None)
    with pytest.raises(error) as caught:
        predict(make_core({FLORENCE_ID: encoder}, {FLORENCE_ID: decoder}), task="ocr")
    assert FLORENCE_ID in caught.value.message
    assert str(failure) not in caught.value.message


@pytest.mark.parametrize(
    ("code", "message", "error", "param"),
    [
        (
            "sequence_too_long",
            "max_new_tokens is 9; after this prompt up to 5 fit",
            InvalidRequest,
            "max_new_tokens",
        ),
        ("sequence_too_long", "the prompt is too long", InvalidRequest, None),
        ("deadline_exceeded", "the time ran out", DeadlineExceeded, None),
        ("overloaded", "too many wait", Overloaded, None),
        ("unknown_adapter", "no adapter of the build", NotReady, None),
        ("unknown_token", "<VQA> is not a token", InvalidRequest, "messages"),
        ("non_finite_logits", "not finite", InternalError, None),
        ("internal", "failed", InternalError, None),
    ],
)
def test_failed_sequence_is_a_service_error(
    code: FailureCode, message: str, error: type[ServiceError], param: str | None
) -> None:
    decoder = FakeDecoder({**FLORENCE_ANSWERS, OD_PROMPT: Failed(code=code, message=message)})
    with pytest.raises(error, match=message) as caught:
        predict(make_core(decoders={FLORENCE_ID: decoder}), task="object_detection")
    assert caught.value.param == param


def test_unreadable_image_ends_a_comparison() -> None:
    with pytest.raises(UnsupportedImage):
        compare(make_core(), b"no image", task="ocr")


def test_image_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(ImageTooLarge):
        predict(make_core(max_image_pixels=IMAGE_SIZE_WH[0] * IMAGE_SIZE_WH[1] - 1), task="ocr")


@pytest.mark.parametrize(
    ("timeout_s", "late"),
    [
        (-1, "the header of the image was not read"),
        (0, "the header of the image was not read"),
        (1, "florence-2-mini did not answer"),
    ],
)
def test_deadline_ends_a_request(timeout_s: float, late: str) -> None:
    async def never_answers() -> Answer:
        core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=asyncio.Event())})
        return await core.predict(PNG, {"task": "ocr"}, context(timeout_s=timeout_s))

    with pytest.raises(DeadlineExceeded, match=f"{late} before the deadline"):
        run(asyncio.wait_for(never_answers(), 60))


def test_pending_requests_are_limited_and_released() -> None:
    async def three_requests() -> str:
        released = asyncio.Event()
        encoder = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: encoder}, max_pending=1)
        first = asyncio.create_task(core.predict(PNG, {"task": "ocr"}, context()))
        while not encoder.shapes:
            await asyncio.sleep(0.001)
        with pytest.raises(Overloaded, match="this client has 1 of 1 requests in flight or queued"):
            await core.predict(PNG, {"task": "ocr"}, context())
        with pytest.raises(Overloaded):
            await core.compare(PNG, {"task": "ocr"}, context())
        released.set()
        await first
        return (await core.predict(PNG, {"task": "ocr"}, context())).model.id

    assert run(asyncio.wait_for(three_requests(), 60)) == FLORENCE_ID


@pytest.mark.parametrize("image", [PNG, b"no image"])
def test_failed_and_cancelled_requests_are_released(image: bytes) -> None:
    async def fail_then_answer() -> str:
        released = asyncio.Event()
        encoder = FakeEncoder(released=released)
        core = make_core(encoders={FLORENCE_ID: encoder}, max_pending=1)
        task = asyncio.create_task(core.predict(image, {"task": "ocr"}, context()))
        while not encoder.shapes and not task.done():
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() or isinstance(task.exception(), UnsupportedImage)
        released.set()
        return (await core.predict(PNG, {"task": "ocr"}, context())).model.id

    assert run(asyncio.wait_for(fail_then_answer(), 60)) == FLORENCE_ID
