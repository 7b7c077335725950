"""The auto-annotation function of CVAT over a scripted service: shapes, and what is asked."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cvat_sdk.auto_annotation.driver import _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask
from PIL import Image

from diptych_client import (
    Answer,
    Detection,
    DetectionsResult,
    ImageSize,
    InstancesResult,
    RunLengthMask,
)
from diptych_client.integrations.cvat import create
from diptych_client.results import Instance
from tests.support.client_answers import DETECTIONS, FAR_SQUARE, INSTANCES, SQUARE, answer
from tests.support.scripted_services import Script, serving_rest

FULL = RunLengthMask((2, 4), "08")
EMPTY = RunLengthMask((2, 4), "8")


def detected(
    answers: Sequence[Answer], conversion: bool = False, threshold: float = 0, **parameters: Any
) -> tuple[list[Any], Script]:
    """Return the shapes of an image, and the script with the requests."""
    script = Script(list(answers))
    context = _DetectionFunctionContextImpl(
        frame_name="a.png", conf_threshold=threshold, conv_mask_to_poly=conversion
    )
    labels = "star, circle,star,, "
    with serving_rest(script) as url, closing(create(labels, url=url, **parameters)) as function:
        names = [(label.name, label.id) for label in function.spec.labels]
        assert names == [("star", 0), ("circle", 1)]
        return function.detect(context, Image.new("RGB", (40, 20))), script


def masks(*instances: RunLengthMask) -> Answer:
    segmented = [Instance((0, 0, 4, 2), "star", 0.5, mask=mask) for mask in instances]
    return answer(InstancesResult(tuple(segmented)), ImageSize(4, 2))


def test_rectangles_are_one_request_with_key_and_model(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    key: dict[str, Any] = {"api_key_file": str(tmp_path / "key")}
    shapes, script = detected([answer(DETECTIONS)], threshold=0.125, model="m-7", **key)
    assert [(shape.label_id, shape.score) for shape in shapes] == [(0, 0.9), (1, 0.5), (0, 0.25)]
    assert shapes[0].points == [1.0, 2.0, 11.0, 12.0]
    (request,) = script.received
    assert request.key == "Bearer secret"
    for text in (b"open_vocabulary_detection", b"0.125", b"m-7"):
        assert text in request.body
    boxes = (Detection((0, 0, 4, 2), "circle"), Detection((0, 0, 4, 2), "ring", 0.9))
    (shape,), _ = detected([answer(DetectionsResult(boxes))])
    assert (shape.label_id, shape.score) == (1, 0.0)


def test_masks_are_those_of_the_answer_without_empty_ones() -> None:
    shapes, script = detected([masks(FULL, EMPTY), masks(EMPTY, FULL)], shape="mask")
    assert [(shape.label_id, shape.type.value) for shape in shapes] == [(0, "mask"), (1, "mask")]
    for shape in shapes:
        assert np.all(decode_mask(shape.points, image_width=4, image_height=2))
    bodies = [request.body for request in script.received]
    assert [b"star" in body for body in bodies] == [True, False]
    assert [b"circle" in body for body in bodies] == [False, True]


@pytest.mark.parametrize(("shape", "conversion"), [("polygon", False), ("mask", True)])
def test_polygons_are_the_outer_rings(shape: str, conversion: bool) -> None:
    shapes, _ = detected([answer(INSTANCES), masks()], conversion, shape=shape)
    assert {(drawn.type.value, drawn.label_id) for drawn in shapes} == {("polygon", 0)}
    rings = [list(zip(drawn.points[::2], drawn.points[1::2], strict=True)) for drawn in shapes]
    assert rings == [list(ring) for ring in (SQUARE, SQUARE, FAR_SQUARE)]


def test_bad_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must be comma-separated names, got ' ,'"):
        create(" ,")
    with pytest.raises(ValueError, match="shape must be one of rectangle, polygon, mask, got 'x'"):
        create("a", shape="x")
