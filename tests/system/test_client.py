"""The client against the running service: the same answers over REST and gRPC, from both
clients.
"""

import io
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
from PIL import Image

from diptych_client import Answer, AnswerOptions, DiptychError, TaskParameters, Timings
from diptych_client.transports.rest_messages import answer_json
from tests.support.both_clients import KINDS, call
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image, scene_png
from tests.system.test_answers import FLORENCE, PALIGEMMA, rounded

IMAGE = scene_png()
NO_TIMES = Timings(**dict.fromkeys([field.name for field in fields(Timings)], 0.0))


def every_way(service: RunningService, method: Callable[[Any], Any], **settings: Any) -> list[Any]:
    """Return the results over both transports, from both clients."""
    urls = (service.url, f"grpc://{service.grpc_address}")
    return [call(kind, url, method, **settings) for url, kind in product(urls, KINDS)]


def client_arguments(request: dict[str, Any]) -> tuple[TaskParameters, AnswerOptions, str | None]:
    """Return the fields of a request as arguments of the client."""
    parameters = TaskParameters(**fields_of(TaskParameters, request))
    return parameters, AnswerOptions(**fields_of(AnswerOptions, request)), request.get("model")


def fields_of(
    kind: type[TaskParameters | AnswerOptions], request: dict[str, Any]
) -> dict[str, Any]:
    return {field.name: request[field.name] for field in fields(kind) if field.name in request}


def predict(request: dict[str, Any]) -> Callable[[Any], Any]:
    parameters, options, model = client_arguments(request)
    return lambda client: client.predict(
        IMAGE, request["task"], parameters, model=model, options=options
    )


def stream(request: dict[str, Any]) -> Callable[[Any], Any]:
    parameters, options, model = client_arguments(request)
    return lambda client: client.stream(
        IMAGE, request["task"], parameters, model=model, options=options
    )


def reproducible(answer: Answer) -> Any:
    """Return an answer without the fields that differ from run to run; scores differ in their last
    digits.
    """
    return rounded(answer_json(replace(answer, id="", timings_ms=NO_TIMES, vision_cache="hit")))


def test_pieces_of_a_stream_are_the_raw_text_and_its_end_the_answer(
    service: RunningService,
) -> None:
    request = {"task": "captioning", "detail": "detailed", "model": FLORENCE}
    whole = call("sync", service.url, predict(request))
    for *texts, answer in every_way(service, stream(request)):
        assert len(texts) > 5
        assert "".join(texts) == whole.raw_text
        assert reproducible(answer) == reproducible(whole)


@pytest.mark.parametrize("ask", [predict, stream])
@pytest.mark.parametrize(
    ("request_fields", "code"),
    [
        ({"task": "nothing"}, "invalid_request"),
        ({"task": "object_detection", "model": PALIGEMMA}, "unsupported_task"),
    ],
)
def test_an_error_is_the_same_every_way(
    service: RunningService,
    request_fields: dict[str, Any],
    code: str,
    ask: Callable[[dict[str, Any]], Any],
) -> None:
    def error_of(client_kind: str, url: str) -> tuple[object, ...]:
        with pytest.raises(DiptychError) as caught:
            call(client_kind, url, ask(request_fields))
        assert len(caught.value.request_id) == 32
        return type(caught.value), caught.value.code, caught.value.message, caught.value.param

    urls = (service.url, f"grpc://{service.grpc_address}")
    first, *others = (error_of(kind, url) for url, kind in product(urls, KINDS))
    assert first[1] == code
    assert others == [first] * 3


def test_boxes_of_a_pil_image_are_in_its_own_pixels_despite_its_exif_orientation(
    service: RunningService,
) -> None:
    upright = scene_image()
    exif = upright.getexif()
    exif[0x0112] = 6  # rotated by 90 degrees
    file = io.BytesIO()
    upright.save(file, "PNG", exif=exif)
    answer = call(
        "sync", service.url, lambda client: client.predict(Image.open(file), "object_detection")
    )
    assert (answer.image.width, answer.image.height) == upright.size
    assert reproducible(answer) == reproducible(
        call("sync", service.url, predict({"task": "object_detection"}))
    )
