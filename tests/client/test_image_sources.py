"""Images as callers hold them: the pixels that are sent, and errors that are `DiptychError`s."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych_client import Client, DiptychError, InvalidRequest
from diptych_client.image_sources import encoded_image
from diptych_client.requests import (
    AnswerOptions,
    TaskParameters,
    answer_options,
    split_list,
    task_parameters,
)

RGB = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def pixels(image: Any, bgr: bool = False) -> Any:
    with Image.open(io.BytesIO(encoded_image(image, bgr))) as opened:
        return np.asarray(opened)


def test_arrays_are_rgb_or_bgr() -> None:
    assert (pixels(RGB) == RGB).all()
    assert (pixels(RGB[:, :, ::-1], bgr=True) == RGB).all()
    rgba = np.dstack([RGB, np.full((4, 5), 9, np.uint8)])
    assert (pixels(rgba[:, :, [2, 1, 0, 3]], bgr=True) == rgba).all()
    assert (pixels(RGB[:, :, 0]) == pixels(RGB[:, :, :1])).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_shares_of_255(dtype: type) -> None:
    assert (pixels((RGB / 255).astype(dtype)) == RGB).all()


def test_tensors_may_have_their_channels_first() -> None:
    tensor = torch.from_numpy(RGB)
    assert (pixels(tensor) == RGB).all()
    assert (pixels(tensor.permute(2, 0, 1)) == RGB).all()
    assert (pixels((tensor.permute(2, 0, 1) / 255).bfloat16()) - RGB.astype(int) <= 1).all()
    assert (pixels((tensor / 255).requires_grad_()) == RGB).all()


def test_paths_bytes_and_file_objects_are_sent_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"file")
    with path.open("rb") as file:
        given: list[Any] = [path, str(path), b"file", bytearray(b"file"), memoryview(b"file"), file]
        assert {encoded_image(each) for each in given} == {b"file"}


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (RGB.astype(np.int64), "must be uint8, or floats from 0 to 1, got int64"),
        (RGB * 1.5, "must be 0 to 1, got floats from 0 to 88.5"),
        (np.full((2, 2), np.nan), "must be 0 to 1"),
        (np.zeros((2, 2, 5), np.uint8), r"got \(2, 2, 5\)"),
        (np.zeros((0, 2), np.uint8), r"got \(0, 2\)"),
        ([RGB], "got list; for several images use predict_many"),
        (None, "an image must be a path, a URL"),
        (io.StringIO("text"), "got StringIO"),
        ("none.png", "cannot read the image: .*No such file"),
        ("a\0.png", "cannot read the image"),
    ],
)
def test_another_image_is_an_error_of_the_client(image: Any, message: str) -> None:
    with pytest.raises(DiptychError, match=message):
        encoded_image(image)


def test_a_bad_url_and_an_unknown_field_are_errors_of_the_client() -> None:
    with pytest.raises(InvalidRequest, match="the URL of the service must be"):
        Client("localhost")
    with pytest.raises(InvalidRequest, match="unknown field 'lables'; the fields are labels"):
        task_parameters({"lables": ["a"]})


def test_parameters_and_options_may_be_given_by_name() -> None:
    assert task_parameters({"labels": ["a, b"]}) == TaskParameters(labels=["a, b"])
    assert task_parameters({"labels": "a, b"}) == TaskParameters(labels=("a", "b"))
    assert task_parameters(TaskParameters(phrases="x")).phrases == ("x",)
    assert answer_options({"seed": 3}) == AnswerOptions(seed=3)


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        ("circle,square", ("circle", "square")),
        (' a , "red car, parked",', ("a", "red car, parked")),
        ("", ()),
        ('5" pipe,x', ('5" pipe', "x")),
    ],
)
def test_a_list_is_split_outside_quotes(text: str, elements: tuple[str, ...]) -> None:
    assert split_list(text) == elements
