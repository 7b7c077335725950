from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2Processor

from tasks.catalog import TaskOverride
from tasks.errors import ParameterError, UnsupportedTask
from tasks.florence2.grammar import NUM_BINS, box_tokens, dequantize, quantize
from tasks.florence2.prompts import read_prompt, task_prompts
from tasks.prompts import AskedTask, Prompt
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG, FLORENCE, ROOT

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
    with pytest.raises(UnsupportedTask, match="supports language en only, not fr") as caught:
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


SIDES = st.integers(1, 20_000)


@given(st.integers(0, NUM_BINS - 1), SIDES)
def test_a_bin_survives_the_way_to_pixels_and_back(bin_index: int, side_px: int) -> None:
    assert quantize(dequantize(bin_index, side_px), side_px) == bin_index


@given(st.floats(0, 1), SIDES)
def test_a_position_comes_back_within_half_a_bin(part: float, side_px: int) -> None:
    position = part * side_px
    assert abs(
        dequantize(quantize(position, side_px), side_px) - position
    ) <= side_px / NUM_BINS / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("position", "expected"), [(-5.0, 0), (0.0, 0), (639.9, 999), (640.0, 999), (9e9, 999)]
)
def test_positions_outside_are_clamped(position: float, expected: int) -> None:
    assert quantize(position, 640) == expected


def test_a_box_is_written_x_before_y() -> None:
    assert (
        box_tokens((64.0, 48.0, 320.0, 480.0), (640, 480)) == "<loc_100><loc_100><loc_500><loc_999>"
    )
