"""The auto-annotation function, loaded as cvat-cli does, against the running service and the driver
of CVAT.
"""

import importlib
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
from cvat_sdk import models
from cvat_sdk.auto_annotation import DetectionFunctionSpec
from cvat_sdk.auto_annotation.driver import _AnnotationMapper, _DetectionFunctionContextImpl
from cvat_sdk.masks import decode_mask
from PIL import Image

from diptych_client import Client, TaskParameters
from diptych_client.results import InstancesResult
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image

IMAGE = scene_image(3, (320, 240))
LABELS = ["circle", "square", "triangle"]
PALIGEMMA = "paligemma-mini"


@contextmanager
def function(service: RunningService, **parameters: str) -> Iterator[Any]:
    """Yield what `cvat-cli task auto-annotate --function-module …` creates with `-p
    NAME=str:VALUE`.
    """
    module = importlib.import_module("diptych_client.integrations.cvat")
    with closing(
        module.create(**{"labels": ", ".join(LABELS), "url": service.url} | parameters)
    ) as created:
        yield created


def annotated(
    created: Any, image: Image.Image = IMAGE, shape: str = "any", **context: Any
) -> list[Any]:
    """Return the shapes that the driver would upload to a task with the same labels.

    The driver's class is private; its public function annotates a task on a CVAT server only.
    """
    assert isinstance(created.spec, DetectionFunctionSpec)
    of_task = [
        models.Label(name=name, id=100 + at, type=shape, attributes=[], sublabels=[])
        for at, name in enumerate(LABELS)
    ]
    to_polygons = context.get("conv_mask_to_poly", False)
    mapper = _AnnotationMapper(
        logging.getLogger(__name__),
        created.spec.labels,
        of_task,
        allow_unmatched_labels=False,
        conv_mask_to_poly=to_polygons,
    )
    found = created.detect(_DetectionFunctionContextImpl(frame_name="scene.png", **context), image)
    tags, shapes = mapper.validate_and_remap(found, 7)
    assert tags == []
    assert {(shape.frame, shape.source) for shape in shapes} == {(7, "auto")}
    return list(shapes)


def test_rectangles_are_the_detections_of_the_client(service: RunningService) -> None:
    with function(service) as created:
        shapes = annotated(created, shape="rectangle")
    with Client(service.url) as client:
        answer = client.predict(IMAGE, "open_vocabulary_detection", TaskParameters(labels=LABELS))
    expected = [(100 + LABELS.index(d.label), list(d.box_xyxy)) for d in answer.result.detections]  # type: ignore[union-attr]
    assert [(shape.label_id, shape.points) for shape in shapes] == expected
    assert {shape.type.value for shape in shapes} == {"rectangle"}
    assert all(0 <= shape.score <= 1 for shape in shapes)


def test_masks_are_those_of_the_client(service: RunningService) -> None:
    with function(service, shape="mask", model=PALIGEMMA) as created:
        shapes = annotated(created, shape="mask")
    with Client(service.url) as client:
        answers = [
            client.predict(
                IMAGE, "instance_segmentation", TaskParameters(phrase=label), model=PALIGEMMA
            )
            for label in LABELS
        ]
    expected = [
        (100 + at, instance.to_mask(answer.image))
        for at, answer in enumerate(answers)
        if isinstance(answer.result, InstancesResult)
        for instance in answer.result.instances
    ]
    assert len(shapes) == len(expected) > 0
    for shape, (label_id, mask) in zip(shapes, expected, strict=True):
        assert shape.label_id == label_id
        decoded = decode_mask(shape.points, image_width=IMAGE.width, image_height=IMAGE.height)
        np.testing.assert_array_equal(decoded, mask)
