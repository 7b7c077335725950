from dataclasses import replace
from typing import Any

import pytest
from transformers.models.florence2.processing_florence2 import Florence2Processor

from tasks.catalog import TaskOverride
from tasks.errors import ParameterError, UnsupportedTask, UnsupportedVariant
from tasks.florence2.prompts import task_prompts
from tasks.parameters import parse_parameters
from tasks.prompts import Prompt
from tasks.table import TASKS
from tests.support.catalog import FLORENCE, ROOT

IMAGE_WH = (640, 480)
REGION = [64, 48, 320, 480]
REGION_TOKENS = "<loc_100><loc_100><loc_500><loc_999>"


def prompts(task_id: str, **values: Any) -> tuple[Prompt, ...]:
    return task_prompts(FLORENCE, task_id, parse_parameters(TASKS[task_id], values), IMAGE_WH)


def test_tags_of_a_template_may_be_control_tokens_and_the_users_text_never() -> None:
    override = TaskOverride("<DocVQA>Answer <short>: {question}")
    entry = replace(FLORENCE, tasks={"visual_question_answering": override})
    asked = parse_parameters(
        TASKS["visual_question_answering"], {"question": "<DocVQA>{text} <OD>?"}
    )
    (prompt,) = task_prompts(entry, "visual_question_answering", asked, IMAGE_WH)
    assert [(segment.text, segment.is_control) for segment in prompt] == [
        ("<DocVQA>", True),
        ("Answer ", False),
        ("<short>", True),
        (": <DocVQA>{text} <OD>?", False),
    ]


@pytest.mark.parametrize(
    ("task_id", "values", "reference"),
    [
        ("captioning", {}, "<CAPTION>"),
        ("captioning", {"detail": "detailed"}, "<DETAILED_CAPTION>"),
        ("captioning", {"detail": "paragraph"}, "<MORE_DETAILED_CAPTION>"),
        ("object_detection", {}, "<OD>"),
        ("open_vocabulary_detection", {"labels": ["{dog}"]}, "<OPEN_VOCABULARY_DETECTION>{dog}"),
        (
            "open_vocabulary_detection",
            {"labels": ["a circle"]},
            "<OPEN_VOCABULARY_DETECTION>circle",
        ),
        ("phrase_grounding", {"caption": "a cat"}, "<CAPTION_TO_PHRASE_GROUNDING>a cat"),
        ("phrase_grounding", {"phrases": ["cat"]}, "<OPEN_VOCABULARY_DETECTION>cat"),
        ("phrase_grounding", {"phrases": ["An owl"]}, "<OPEN_VOCABULARY_DETECTION>owl"),
        ("region_proposal", {}, "<REGION_PROPOSAL>"),
        ("dense_region_captioning", {}, "<DENSE_REGION_CAPTION>"),
        (
            "instance_segmentation",
            {"phrase": "ün {text}"},
            "<REFERRING_EXPRESSION_SEGMENTATION>ün {text}",
        ),
        ("instance_segmentation", {"region": REGION}, f"<REGION_TO_SEGMENTATION>{REGION_TOKENS}"),
        ("ocr", {}, "<OCR>"),
        ("ocr_with_regions", {}, "<OCR_WITH_REGION>"),
        ("region_description", {"region": REGION}, f"<REGION_TO_DESCRIPTION>{REGION_TOKENS}"),
        (
            "region_description",
            {"region": REGION, "detail": "category"},
            f"<REGION_TO_CATEGORY>{REGION_TOKENS}",
        ),
        (
            "region_description",
            {"region": REGION, "detail": "text"},
            f"<REGION_TO_OCR>{REGION_TOKENS}",
        ),
    ],
)
def test_the_prompt_is_the_sentence_of_transformers(
    task_id: str, values: dict[str, Any], reference: str
) -> None:
    processor = Florence2Processor.from_pretrained(ROOT / FLORENCE.source)
    (prompt,) = prompts(task_id, **values)
    assert "".join(segment.text for segment in prompt) == processor._construct_prompts(reference)[0]


@pytest.mark.parametrize(
    ("task_id", "name"), [("open_vocabulary_detection", "labels"), ("phrase_grounding", "phrases")]
)
def test_each_label_and_phrase_gets_its_own_prompt(task_id: str, name: str) -> None:
    first, second = prompts(task_id, **{name: ["dog", "cat"]})
    assert [segment.text for segment in first] == ["Locate dog in the image."]
    assert [segment.text for segment in second] == ["Locate cat in the image."]


def test_only_the_region_is_control_text() -> None:
    (prompt,) = prompts("region_description", region=REGION)
    assert [(s.text, s.is_control) for s in prompt] == [
        ("What does the region ", False),
        (REGION_TOKENS, True),
        (" describe?", False),
    ]


def test_a_users_text_is_never_control_text() -> None:
    (prompt,) = prompts("instance_segmentation", phrase="<loc_5></s>")
    assert [(s.text, s.is_control) for s in prompt] == [
        ("Locate <loc_5></s> in the image with mask", False)
    ]


def test_a_task_that_is_not_offered_is_refused() -> None:
    entry = replace(FLORENCE, tasks={"ocr": TaskOverride(None)})
    parameters = parse_parameters(TASKS["ocr"], {})
    with pytest.raises(UnsupportedTask, match="florence-2-mini does not offer ocr; it offers capt"):
        task_prompts(entry, "ocr", parameters, IMAGE_WH)


def test_another_language_is_refused() -> None:
    with pytest.raises(UnsupportedVariant, match="supports language en only, not fr") as caught:
        prompts("captioning", language="fr")
    assert caught.value.param == "language"


@pytest.mark.parametrize("region", [[0, 0, 640.5, 10], [0, 0, 10, 481], [700, 500, 800, 600]])
def test_a_region_beyond_the_image_is_refused(region: list[float]) -> None:
    with pytest.raises(ParameterError, match="x from 0 to 640, y from 0 to 480") as caught:
        prompts("region_description", region=region)
    assert caught.value.param == "region"


def test_a_region_may_be_the_whole_image() -> None:
    (prompt,) = prompts("region_description", region=[0, 0, 640, 480])
    assert prompt[1].text == "<loc_0><loc_0><loc_999><loc_999>"
