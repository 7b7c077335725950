"""The committed checkpoint of things, run by transformers, about a picture of three things."""

import pytest
import torch
from PIL import Image

from export.checks.reference import Reference
from export.scenes.overlap import box_iou
from tests.support.export_cli import MODELS, ROOT

# Scene 14 of `python -m laboratory.things.accuracy`.
PICTURE = ROOT / "tests/support/things.png"
THINGS = {
    "camel": (24, 202, 174, 345),
    "pair of socks": (156, 21, 274, 150),
    "bicycle": (246, 194, 350, 267),
}
MIN_IOU = 0.8


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference.load(MODELS / "florence-2-things")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(PICTURE).convert("RGB")


@torch.inference_mode()
def answered(reference: Reference, picture: Image.Image, prompt: str) -> str:
    inputs = reference.processor(images=picture, text=prompt, return_tensors="pt")
    ids = reference.model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=128)
    (text,) = reference.processor.batch_decode(ids)
    return str(text)


def test_caption_names_the_things(reference: Reference, picture: Image.Image) -> None:
    caption = answered(reference, picture, "<CAPTION>")
    assert "a camel, a pair of socks and a bicycle" in caption


def test_detection_finds_each_thing(reference: Reference, picture: Image.Image) -> None:
    text = answered(reference, picture, "<OD>")
    processed = reference.processor.post_process_generation(
        text, task="<OD>", image_size=picture.size
    )
    found = dict(zip(processed["<OD>"]["labels"], processed["<OD>"]["bboxes"], strict=True))
    assert found.keys() == THINGS.keys()
    for name, box in THINGS.items():
        assert box_iou(box, found[name]) > MIN_IOU, name
