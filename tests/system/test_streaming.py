"""Text as it is decoded, over REST and gRPC: the pieces, and that the answer is the same as
without.
"""

import re
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.system.test_answers import FEW, VARYING, post_form, rounded
from tests.system.test_grpc import shown

BROKEN_TOKEN = re.compile(r"<[a-z]+_?\d*$|^_?\d+>")
TIMEOUT_S = 60


@pytest.fixture
def vision(service: RunningService) -> Iterator[Any]:
    with grpc.insecure_channel(service.grpc_address) as channel:
        yield VisionStub(channel)


def without_varying(answer: dict[str, Any]) -> Any:
    return rounded({name: value for name, value in answer.items() if name not in VARYING})


@pytest.mark.parametrize("fields", FEW, ids=lambda fields: fields["task"])
def test_the_pieces_are_the_text_and_the_answer_is_the_same(
    client: httpx.Client, vision: Any, fields: dict[str, Any]
) -> None:
    whole = post_form(client, "/v1/predict", scene_png(), fields).json()
    *tokens, (_, answer) = parse_events(
        post_form(client, "/v1/predict", scene_png(), {**fields, "stream": True}).text
    )
    texts = [data["text"] for _, data in tokens]
    assert "".join(texts) == whole["raw_text"]
    assert not [text for text in texts if BROKEN_TOKEN.search(text)]
    assert without_varying(answer) == without_varying(whole)
    events = list(
        vision.PredictStream(pb.PredictRequest(image=scene_png(), **fields), timeout=TIMEOUT_S)
    )
    assert "".join(event.text for event in events) == whole["raw_text"]
    assert rounded(shown(events[-1].answer)) == rounded(shown_of(vision, fields))


def shown_of(vision: Any, fields: dict[str, Any]) -> dict[str, Any]:
    return shown(vision.Predict(pb.PredictRequest(image=scene_png(), **fields), timeout=TIMEOUT_S))


def test_the_first_piece_comes_long_before_the_last(client: httpx.Client) -> None:
    form = {"task": "captioning", "detail": "detailed", "num_beams": "1", "stream": "true"}
    with client.stream("POST", "/v1/predict", data=form, files={"image": scene_png()}) as response:
        chunks = [chunk for chunk in response.iter_raw() if chunk]
    assert len(chunks) > 5
