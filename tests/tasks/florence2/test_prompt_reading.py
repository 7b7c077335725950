from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.catalog import TaskOverride
from tasks.errors import ParameterError, UnsupportedTask
from tasks.florence2.prompts import read_prompt, task_prompts
from tasks.parameters import parse_parameters
from tasks.prompts import AskedTask
from tasks.table import TASKS
from tests.support.catalog import CATALOG, FLORENCE

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


QUESTION_TASK = "visual_question_answering"
UNTUNED = CATALOG["florence-2-base"]


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("<GENERATE_TAGS>", [("<GENERATE_TAGS>", True, True)]),
        ("<VQA>why <s>?", [("<VQA>", True, True), ("why <s>?", False, False)]),
    ],
)
def test_a_token_of_a_fine_tune_is_sent_as_one_token(
    text: str, segments: list[tuple[str, bool, bool]]
) -> None:
    asked = read_prompt(UNTUNED, text)
    assert asked == AskedTask(QUESTION_TASK, {"question": text})
    parameters = parse_parameters(TASKS[QUESTION_TASK], asked.values)
    (prompt,) = task_prompts(UNTUNED, QUESTION_TASK, parameters, IMAGE_WH)
    assert [(part.text, part.is_control, part.is_token) for part in prompt] == segments


@pytest.mark.parametrize("question", ["why?", "<s>", "<OD>", "is <VQA> a token?"])
def test_other_questions_need_a_template(question: str) -> None:
    parameters = parse_parameters(TASKS[QUESTION_TASK], {"question": question})
    with pytest.raises(UnsupportedTask, match="florence-2-base does not offer visual_question"):
        task_prompts(UNTUNED, QUESTION_TASK, parameters, IMAGE_WH)


def test_a_token_in_a_template_is_its_task() -> None:
    overrides = {
        QUESTION_TASK: TaskOverride("<VQA>{question}"),
        "captioning": TaskOverride("<MIXED_CAPTION>"),
        "region_description": TaskOverride("<REGION_TO_TAGS>{region}"),
    }
    entry = replace(UNTUNED, tasks=overrides)
    assert read_prompt(entry, "<VQA>why?") == AskedTask(QUESTION_TASK, {"question": "why?"})
    assert read_prompt(entry, "<MIXED_CAPTION>") == AskedTask("captioning", {})
    message = r"<ANALYZE> is not a task token of florence-2-base; .* template: in its catalog entry"
    for text in ("<ANALYZE>", "<ANALYZE>" + "<loc_5>" * 4):
        with pytest.raises(ParameterError, match=message):
            read_prompt(entry, text)
