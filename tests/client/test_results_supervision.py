"""Results as supervision's Detections."""

import subprocess
import sys

import numpy as np
import pytest
import supervision

from diptych_client import DetectionsResult, ImageSize, InstancesResult, TextRegionsResult
from tests.support.client_answers import (
    DETECTIONS,
    INSTANCES,
    MASKS,
    SIZE,
    TEXT,
    TEXT_REGIONS,
    answer,
)
from tests.support.export_cli import ROOT


def test_boxes_scores_and_labels_with_one_class_for_each_label() -> None:
    found = answer(DETECTIONS).to_supervision()
    assert found.xyxy.tolist() == [[1, 2, 11, 12], [20, 4, 30, 14], [30, 4, 36, 10]]
    assert found.confidence is not None
    assert found.confidence.tolist() == [np.float32(0.9), 0.5, 0.25]
    assert found.class_id is not None
    assert found.class_id.tolist() == [0, 1, 0]
    assert list(found.data["class_name"]) == ["star", "circle", "star"]
    assert found.mask is None


def test_masks_have_the_image_s_size_and_keep_holes() -> None:
    found = answer(INSTANCES).to_supervision()
    assert found.mask is not None
    assert (found.mask.shape, found.mask.dtype) == ((2, SIZE.height, SIZE.width), np.dtype(bool))
    assert found.mask.sum(axis=(1, 2)).tolist() == [84, 200]


def test_a_mask_of_run_lengths_is_decoded() -> None:
    found = answer(MASKS, ImageSize(width=4, height=2)).to_supervision()
    assert found.mask is not None
    assert found.mask.sum() == 8


def test_quads_have_the_boxes_around_them() -> None:
    found = answer(TEXT_REGIONS).to_supervision()
    assert found.xyxy.tolist() == [[4, 5, 15, 10]]
    assert np.asarray(found.data["xyxyxyxy"]).tolist() == [[[5, 5], [15, 6], [14, 10], [4, 9]]]
    assert list(found.data["class_name"]) == ["HI"]


@pytest.mark.parametrize(
    "result", [DetectionsResult(()), InstancesResult(()), TextRegionsResult(())]
)
def test_an_empty_result_can_be_merged(
    result: DetectionsResult | InstancesResult | TextRegionsResult,
) -> None:
    found = answer(result).to_supervision()
    assert len(found) == 0
    assert len(supervision.Detections.merge([found, answer(DETECTIONS).to_supervision()])) == 3


def test_a_text_has_no_box_and_is_in_the_metadata() -> None:
    found = answer(TEXT).to_supervision()
    assert len(found) == 0
    assert found.metadata == {"text": TEXT.text}


def test_without_supervision_the_error_names_the_package_to_install() -> None:
    code = (
        "import sys; sys.modules['supervision'] = None\n"  # an import of it fails
        "from tests.support.client_answers import DETECTIONS, answer\n"
        "answer(DETECTIONS).to_supervision()"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert "ImportError: to_supervision() needs supervision: pip install supervision" in run.stderr
