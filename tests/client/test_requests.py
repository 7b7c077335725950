"""Requests: only given fields and the image are sent, the same over both transports."""

import io
from pathlib import Path

import pytest
from PIL import Image

from diptych_client import AnswerOptions, InvalidRequest, TaskParameters
from diptych_client.image_sources import encoded_image
from diptych_client.requests import non_null_fields, task_request
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_transports import request_message
from diptych_client.transports.rest_messages import form_values

PARAMETERS = TaskParameters(labels=["a", "b; c"], region=(1, 2, 3.5, 4), question="wie viele?")
OPTIONS = AnswerOptions(
    max_new_tokens=5,
    temperature=0.0,
    constrained=False,
    mask_format="rle",
    min_score=0.0,
    min_precision=0.9,
    nms_iou=0.5,
    tiles=6,
    overlap=0.1,
    min_object_px=8,
)

CHOSEN = {"task": "some_task", "model": "m"}


def test_none_is_not_sent() -> None:
    assert non_null_fields(TaskParameters(), AnswerOptions()) == {}
    assert task_request(
        b"i", {"task": "ocr", "model": None}, TaskParameters(), AnswerOptions()
    ).fields == {"task": "ocr"}


def test_false_and_zero_are_sent() -> None:
    fields = non_null_fields(
        TaskParameters(), AnswerOptions(temperature=0.0, seed=0, constrained=False)
    )
    assert fields == {"temperature": 0.0, "seed": 0, "constrained": False}


def test_a_form_has_lists_numbers_and_booleans_as_json() -> None:
    request = task_request(b"i", CHOSEN, PARAMETERS, OPTIONS)
    assert form_values(request.fields) == {
        "task": "some_task",
        "model": "m",
        "labels": '["a", "b; c"]',
        "region": "[1, 2, 3.5, 4]",
        "question": "wie viele?",
        "max_new_tokens": "5",
        "temperature": "0.0",
        "constrained": "false",
        "mask_format": "rle",
        "min_score": "0.0",
        "min_precision": "0.9",
        "nms_iou": "0.5",
        "tiles": "6",
        "overlap": "0.1",
        "min_object_px": "8",
    }


def test_a_message_has_the_same_fields() -> None:
    message = request_message(pb.PredictRequest, task_request(b"i", CHOSEN, PARAMETERS, OPTIONS))
    assert message == pb.PredictRequest(
        image=b"i",
        task="some_task",
        model="m",
        labels=["a", "b; c"],
        region=[1, 2, 3.5, 4],
        question="wie viele?",
        max_new_tokens=5,
        temperature=0.0,
        constrained=False,
        mask_format="rle",
        min_score=0.0,
        min_precision=0.9,
        nms_iou=0.5,
        tiles="6",
        overlap=0.1,
        min_object_px=8,
    )
    assert message.HasField("temperature")


def test_the_models_of_a_comparison_are_a_repeated_field() -> None:
    request = task_request(
        b"i", {"task": "ocr", "models": ("m", "n")}, TaskParameters(), AnswerOptions()
    )
    assert request_message(pb.CompareRequest, request).models == ["m", "n"]


def test_a_file_is_sent_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"any bytes")
    assert (
        encoded_image(path)
        == encoded_image(str(path))
        == encoded_image(b"any bytes")
        == b"any bytes"
    )


def test_a_url_is_sent_as_it_is_over_rest_alone() -> None:
    url = "https://example.org/a.png"
    request = task_request(url, {"task": "ocr"}, TaskParameters(), AnswerOptions())
    assert request.image == url
    with pytest.raises(InvalidRequest, match="only REST takes one") as caught:
        request_message(pb.PredictRequest, request)
    assert caught.value.param == "image"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
def test_a_pil_image_of_any_mode_can_be_sent(mode: str) -> None:
    sent = Image.open(io.BytesIO(encoded_image(Image.new(mode, (5, 3)))))
    assert sent.size == (5, 3)


def test_a_pil_image_is_sent_without_its_exif_orientation() -> None:
    image = Image.new("RGB", (5, 3), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    sent = Image.open(io.BytesIO(encoded_image(Image.open(file))))
    assert sent.size == (5, 3)
    assert not sent.getexif()
