"""The auto-annotation function of CVAT over a scripted service: shapes, and what is asked."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask
from PIL import Image

from diptych_client import Answer, ImageSize, InstancesResult, RunLengthMask
from diptych_client.integrations.cvat import DiptychFunction, create
from diptych_client.results import Instance
from tests.support.client_answers import DETECTIONS, FAR_SQUARE, HOLE, INSTANCES, SQUARE, answer
from tests.support.scripted_services import Script, serving_rest

IMAGE = Image.new("RGB", (40, 20))
FOUND = RunLengthMask((2, 4), "08")
EMPTY = RunLengthMask((2, 4), "8")
BOX = (0.0, 0.0, 4.0, 2.0)


@contextmanager
def function(
    answers: Sequence[Answer], labels: str = "star, circle", **parameters: Any
) -> Iterator[tuple[DiptychFunction, Script]]:
    script = Script(list(answers))
    with serving_rest(script) as url, closing(create(labels, url=url, **parameters)) as created:
        yield created, script


def detected(created: DiptychFunction, **context: Any) -> list[Any]:
    return created.detect(_DetectionFunctionContextImpl(frame_name="a.png", **context), IMAGE)


def masks(*instances: RunLengthMask) -> Answer:
    segmented = [Instance(BOX, "star", 0.5, mask=mask) for mask in instances]
    return answer(InstancesResult(tuple(segmented)), ImageSize(4, 2))


def test_rectangles_have_the_number_of_their_label_and_one_request() -> None:
    with function([answer(DETECTIONS)]) as (created, script):
        shapes = detected(created, conf_threshold=0.125)
    assert [(shape.label_id, shape.score) for shape in shapes] == [(0, 0.9), (1, 0.5), (0, 0.25)]
    assert shapes[0].points == [1.0, 2.0, 11.0, 12.0]
    (request,) = script.received
    assert b"open_vocabulary_detection" in request.body
    assert b"0.125" in request.body


def test_masks_have_the_pixels_of_the_answer_and_empty_ones_are_left_out() -> None:
    with function([masks(FOUND, EMPTY), masks(EMPTY, FOUND)], shape="mask") as (created, script):
        shapes = detected(created)
    assert [shape.label_id for shape in shapes] == [0, 1]
    for shape in shapes:
        assert shape.type.value == "mask"
        assert np.all(decode_mask(shape.points, image_width=4, image_height=2))
    bodies = [request.body for request in script.received]
    assert [b"star" in body for body in bodies] == [True, False]
    assert [b"circle" in body for body in bodies] == [False, True]


@pytest.mark.parametrize(("shape", "to_polygons"), [("polygon", False), ("mask", True)])
def test_polygons_are_the_rings_that_are_no_holes(shape: str, to_polygons: bool) -> None:
    answers = [answer(INSTANCES), masks()]
    with function(answers, shape=shape) as (created, _):
        shapes = detected(created, conv_mask_to_poly=to_polygons)
    assert {drawn.type.value for drawn in shapes} == {"polygon"}
    rings = [list(zip(drawn.points[::2], drawn.points[1::2], strict=True)) for drawn in shapes]
    assert rings == [list(ring) for ring in (SQUARE, SQUARE, FAR_SQUARE)]
    assert list(HOLE) not in rings
    assert {drawn.label_id for drawn in shapes} == {0}


def test_labels_are_named_once_without_blanks_in_their_order() -> None:
    with function([], labels=" b, a,b,, ", shape="polygon") as (created, _):
        labels = created.spec.labels
    assert [(label.name, label.id, label.type) for label in labels] == [
        ("b", 0, "polygon"),
        ("a", 1, "polygon"),
    ]


def test_the_key_of_the_file_and_the_model_are_sent(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    key_file = str(tmp_path / "key")
    with function([answer(DETECTIONS)], api_key_file=key_file, model="m-7") as (created, script):
        detected(created)
    assert script.received[0].key == "Bearer secret"
    assert b"m-7" in script.received[0].body


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"labels": " ,"}, r"labels must be comma-separated names, got ' ,'"),
        ({"shape": "x"}, "shape must be one of rectangle, polygon, mask, got 'x'"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**{"labels": "a", **parameters})
