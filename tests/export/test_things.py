"""The committed checkpoints of things, run by transformers, about a picture of three things."""

import pytest
import torch
from PIL import Image

from export.checks.reference import Reference
from export.scenes.overlap import box_iou
from export.scenes.scene import BoxXYXY
from tasks.paligemma.grammar import split_entries
from tasks.paligemma.locations import dequantize
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
def florence() -> Reference:
    return Reference.load(MODELS / "florence-2-things")


@pytest.fixture(scope="module")
def paligemma() -> Reference:
    return Reference.load(MODELS / "paligemma-things")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(PICTURE).convert("RGB")


@torch.inference_mode()
def answered(reference: Reference, picture: Image.Image, prompt: str) -> str:
    """Return the prompt, where the decoder repeats it, and the answer."""
    text = reference.prompt_text(prompt)
    inputs = reference.processor(images=picture, text=text, return_tensors="pt")
    ids = reference.model.generate(**inputs, num_beams=1, do_sample=False, max_new_tokens=128)
    (answer,) = reference.processor.batch_decode(ids)
    return str(answer)


def assert_found(found: dict[str, BoxXYXY]) -> None:
    assert found.keys() == THINGS.keys()
    for name, box in THINGS.items():
        assert box_iou(box, found[name]) > MIN_IOU, name


def test_captions_name_the_things(
    florence: Reference, paligemma: Reference, picture: Image.Image
) -> None:
    caption = "a camel, a pair of socks and a bicycle"
    assert caption in answered(florence, picture, "<CAPTION>")
    assert caption in answered(paligemma, picture, "caption en")


def test_florence_detects_each_thing(florence: Reference, picture: Image.Image) -> None:
    text = answered(florence, picture, "<OD>")
    processed = florence.processor.post_process_generation(
        text, task="<OD>", image_size=picture.size
    )
    assert_found(dict(zip(processed["<OD>"]["labels"], processed["<OD>"]["bboxes"], strict=True)))


def test_paligemma_detects_each_thing(paligemma: Reference, picture: Image.Image) -> None:
    width, height = picture.size
    found = {}
    for name in THINGS:
        (entry,) = split_entries(answered(paligemma, picture, f"detect {name}"))
        bins = [location.bin_index for location in entry.locations]
        y1, x1, y2, x2 = map(dequantize, bins, (height, width, height, width))
        found[entry.label.removesuffix("<eos>")] = (x1, y1, x2, y2)
    assert_found(found)
