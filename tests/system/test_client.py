"""Streams of both clients over REST and gRPC; test_equality.py compares all whole answers."""

from dataclasses import fields
from itertools import product
from typing import Any

import pytest

from diptych_client import AnswerOptions, DiptychError, TaskParameters
from tests.support.both_clients import KINDS, call
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.system.test_answers import FLORENCE, PALIGEMMA

IMAGE = scene_png()


def client_arguments(request: dict[str, Any]) -> tuple[TaskParameters, AnswerOptions, str | None]:
    """Return the fields of a request as arguments of the client."""
    parameters = TaskParameters(**fields_of(TaskParameters, request))
    return parameters, AnswerOptions(**fields_of(AnswerOptions, request)), request.get("model")


def fields_of(
    kind: type[TaskParameters | AnswerOptions], request: dict[str, Any]
) -> dict[str, Any]:
    return {field.name: request[field.name] for field in fields(kind) if field.name in request}


@pytest.fixture(params=["rest", "grpc"])
def url(request: pytest.FixtureRequest, service: RunningService) -> str:
    return service.url if request.param == "rest" else f"grpc://{service.grpc_address}"


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_a_stream_are_the_raw_text(url: str, kind: Any) -> None:
    parameters = TaskParameters(detail="detailed")
    arguments = (IMAGE, "captioning", parameters)
    whole = call(kind, url, lambda client: client.predict(*arguments, model=FLORENCE))
    *pieces, answer = call(kind, url, lambda client: client.stream(*arguments, model=FLORENCE))
    assert len(pieces) > 5
    assert "".join(pieces) == whole.raw_text
    assert answer.result == whole.result


@pytest.mark.parametrize(("kind", "method"), list(product(KINDS, ["predict", "stream"])))
def test_error_is_that_of_the_service(url: str, kind: Any, method: str) -> None:
    with pytest.raises(DiptychError, match=f"{PALIGEMMA} does not offer") as caught:
        call(
            kind,
            url,
            lambda client: getattr(client, method)(IMAGE, "object_detection", model=PALIGEMMA),
        )
    assert (caught.value.code, caught.value.param) == ("unsupported_task", "task")
    assert len(caught.value.request_id) == 32
