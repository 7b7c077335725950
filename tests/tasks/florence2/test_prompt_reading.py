from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import ParameterError
from tasks.florence2.prompts import read_prompt, task_prompts
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.catalog import FLORENCE

IMAGE_WH = (640, 480)


@pytest.mark.parametrize(
    ("text", "task_id", "values"),
    [
        ("<CAPTION>", "captioning", {"detail": "short"}),
        (" <DETAILED_CAPTION>\n", "captioning", {"detail": "detailed"}),
        ("<MORE_DETAILED_CAPTION>", "captioning", {"detail": "paragraph"}),
        ("<OD>", "object_detection", {}),
        ("<REGION_PROPOSAL>", "region_proposal", {}),
        ("<DENSE_REGION_CAPTION>", "dense_region_captioning", {}),
        ("<OCR>", "ocr", {}),
        ("<OCR_WITH_REGION>", "ocr_with_regions", {}),
        ("<OPEN_VOCABULARY_DETECTION>a cat", "open_vocabulary_detection", {"labels": ["a cat"]}),
        (
            "<CAPTION_TO_PHRASE_GROUNDING>a cat, a dog",
            "phrase_grounding",
            {"caption": "a cat, a dog"},
        ),
        ("<REFERRING_EXPRESSION_SEGMENTATION>a <b>", "instance_segmentation", {"phrase": "a <b>"}),
    ],
)
def test_a_task_token_is_its_task(text: str, task_id: str, values: dict[str, Any]) -> None:
    asked = read_prompt(FLORENCE, text)
    assert asked is not None
    assert (asked.task_id, asked.values, asked.region_shares) == (task_id, values, None)


@pytest.mark.parametrize(
    ("token", "values"),
    [
        ("REGION_TO_SEGMENTATION", {}),
        ("REGION_TO_CATEGORY", {"detail": "category"}),
        ("REGION_TO_DESCRIPTION", {"detail": "description"}),
        ("REGION_TO_OCR", {"detail": "text"}),
    ],
)
def test_a_region_comes_back_as_the_same_location_tokens(
    token: str, values: dict[str, Any]
) -> None:
    region = "<loc_0><loc_7><loc_523><loc_999>"
    asked = read_prompt(FLORENCE, f"<{token}>{region}")
    assert asked is not None
    assert asked.values == values
    assert asked.region_shares is not None
    box = [share * side for share, side in zip(asked.region_shares, IMAGE_WH * 2, strict=True)]
    parameters = parse_parameters(TASKS[asked.task_id], {**values, "region": box})
    ((_, (tokens), *_),) = task_prompts(FLORENCE, asked.task_id, parameters, IMAGE_WH)
    assert tokens.text == region


@pytest.mark.parametrize(
    "text",
    [
        "<OD> cats",
        "<VQA>",
        "<REGION_TO_OCR>",
        "<REGION_TO_OCR><loc_1><loc_2><loc_3>",
        "<REGION_TO_OCR>x",
    ],
)
def test_a_token_that_is_used_wrongly_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="<") as refused:
        read_prompt(FLORENCE, text)
    assert refused.value.param == "messages"


@pytest.mark.parametrize("text", ["", "what is it?", "OD", "<od>", "is <OD> a token?"])
def test_other_text_asks_for_no_task(text: str) -> None:
    assert read_prompt(FLORENCE, text) is None


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for each in (text, f"<OD>{text}", f"<REGION_TO_OCR>{text}", f"<{text}>"):
        with suppress(ParameterError):
            read_prompt(FLORENCE, each)
