"""Requests: only given fields and the image are sent, the same over both transports."""

import io

import pytest
from PIL import Image

from diptych_client import AnswerOptions, InvalidRequest, TaskParameters
from diptych_client.image_sources import encoded_image
from diptych_client.requests import FieldValue, Request, non_null_fields
from diptych_client.transports import vision_pb2 as pb
from diptych_client.transports.grpc_transports import request_message
from diptych_client.transports.messages import form_values

PARAMETERS = TaskParameters(labels=["a", "b; c"], region=(1, 2, 3.5, 4), question="wie viele?")
OPTIONS = AnswerOptions(
    max_new_tokens=5,
    temperature=0.0,
    seed=0,
    constrained=False,
    mask_format="rle",
    min_score=0.0,
    min_precision=0.9,
    nms_iou=0.5,
    tiles=6,
    overlap=0.1,
    min_object_px=8,
)
FIELDS: dict[str, FieldValue] = {"task": "some_task", **non_null_fields(PARAMETERS, OPTIONS)}


def test_none_is_not_sent() -> None:
    assert non_null_fields(TaskParameters(), AnswerOptions()) == {}


def test_form_has_lists_numbers_and_booleans_as_json() -> None:
    assert form_values(FIELDS) == {
        "task": "some_task",
        "labels": '["a", "b; c"]',
        "region": "[1, 2, 3.5, 4]",
        "question": "wie viele?",
        "max_new_tokens": "5",
        "temperature": "0.0",
        "seed": "0",
        "constrained": "false",
        "mask_format": "rle",
        "min_score": "0.0",
        "min_precision": "0.9",
        "nms_iou": "0.5",
        "tiles": "6",
        "overlap": "0.1",
        "min_object_px": "8",
    }


def test_message_has_the_same_fields() -> None:
    message = request_message(pb.PredictRequest, Request(b"i", FIELDS))
    assert message.image == b"i"
    for name, value in FIELDS.items():
        field = getattr(message, name)
        assert (tuple(field) if isinstance(value, tuple) else field) == value, name
        assert isinstance(value, tuple) or name == "task" or message.HasField(name), name
    models: dict[str, FieldValue] = {"task": "ocr", "models": ("m", "n")}
    assert request_message(pb.CompareRequest, Request(b"i", models)).models == ["m", "n"]


def test_url_is_sent_over_rest_alone() -> None:
    with pytest.raises(InvalidRequest, match="only REST takes one") as caught:
        request_message(pb.PredictRequest, Request("https://example.org/a.png", FIELDS))
    assert caught.value.param == "image"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I;16"])
def test_pil_image_of_any_mode_is_sent(mode: str) -> None:
    sent = Image.open(io.BytesIO(encoded_image(Image.new(mode, (5, 3)))))
    assert sent.size == (5, 3)


def test_pil_image_is_sent_without_exif_orientation() -> None:
    image = Image.new("RGB", (5, 3), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    sent = Image.open(io.BytesIO(encoded_image(Image.open(file))))
    assert sent.size == (5, 3)
    assert not sent.getexif()
