"""Every kind of answer as COCO, and as a table of pandas."""

from typing import Any

import pytest
from pycocotools.coco import COCO

from diptych_client.results import Result
from tests.support.client_answers import (
    DETECTIONS,
    INSTANCES,
    TEXT,
    TEXT_REGIONS,
    answer,
)


def loaded(document: dict[str, Any]) -> Any:
    """Read a document as pycocotools does."""
    coco = COCO()
    coco.dataset = document
    coco.createIndex()
    return coco


@pytest.mark.parametrize("result", [DETECTIONS, INSTANCES, TEXT_REGIONS])
def test_boxes_masks_and_text_regions_are_annotations(result: Result) -> None:
    document = answer(result).to_coco("a.png", image_id=7)
    coco = loaded(document)
    assert coco.imgs[7]["file_name"] == "a.png"
    for annotation in document["annotations"]:
        assert annotation["category_id"] in coco.cats
        if annotation["segmentation"]:
            assert coco.annToMask(annotation).sum() == pytest.approx(annotation["area"], rel=0.3)


def test_classes_are_numbered_by_first_appearance_and_a_region_has_its_text() -> None:
    categories = answer(DETECTIONS).to_coco()["categories"]
    assert categories == [{"id": 1, "name": "star"}, {"id": 2, "name": "circle"}]
    (region,) = answer(TEXT_REGIONS).to_coco()["annotations"]
    assert region["text"] == "HI"


def test_a_text_is_the_caption_of_the_image() -> None:
    (caption,) = answer(TEXT).to_coco()["annotations"]
    assert caption == {"id": 1, "image_id": 1, "caption": TEXT.text}


@pytest.mark.parametrize("result", [DETECTIONS, INSTANCES, TEXT_REGIONS, TEXT])
def test_a_table_has_a_row_for_each_object_or_the_text(result: Result) -> None:
    table = answer(result).to_pandas()
    expected = {id(DETECTIONS): 3, id(INSTANCES): 2}.get(id(result), 1)
    assert len(table) == expected
    assert set(table["model"]) == {answer(result).model}
    if result is TEXT:
        assert table["label"][0] == TEXT.text
    else:
        assert (table["x2"] > table["x1"]).all()
