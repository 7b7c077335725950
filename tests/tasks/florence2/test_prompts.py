from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.florence2.processing_florence2 import Florence2Processor

from tasks.catalog import CatalogEntry, TaskOverride
from tasks.errors import ParameterError, UnsupportedTask
from tasks.florence2.prompts import read_prompt, task_prompts
from tasks.prompts import AskedTask
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG, FLORENCE, ROOT

UNTUNED = CATALOG["florence-2-base"]
IMAGE_WH = (640, 480)
REGION = [64, 48, 320, 480]
REGION_TOKENS = "<loc_100><loc_100><loc_500><loc_999>"
VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
SEGMENTATION = "instance_segmentation"
DESCRIPTION = "region_description"
QUESTIONS = "visual_question_answering"


def prompts(
    task_id: str, entry: CatalogEntry = FLORENCE, **values: Any
) -> list[list[tuple[str, bool]]]:
    """Return text and kind of the segments of each prompt."""
    parameters = parse_parameters(TASKS[task_id], values)
    segments: list[list[tuple[str, bool]]] = []
    for prompt in task_prompts(entry, task_id, parameters, IMAGE_WH):
        segments.append([(segment.text, segment.is_control) for segment in prompt])
    return segments


@pytest.mark.parametrize(
    ("text", "task_id", "values"),
    [
        ("<CAPTION>", "captioning", {"detail": "short"}),
        ("<DETAILED_CAPTION>", "captioning", {"detail": "detailed"}),
        ("<MORE_DETAILED_CAPTION>", "captioning", {"detail": "paragraph"}),
        ("<OD>", "object_detection", {}),
        ("<OPEN_VOCABULARY_DETECTION>{dog}", VOCABULARY, {"labels": ["{dog}"]}),
        ("<CAPTION_TO_PHRASE_GROUNDING>a cat, a <b>", GROUNDING, {"caption": "a cat, a <b>"}),
        ("<REGION_PROPOSAL>", "region_proposal", {}),
        ("<DENSE_REGION_CAPTION>", "dense_region_captioning", {}),
        ("<REFERRING_EXPRESSION_SEGMENTATION>ün {text}", SEGMENTATION, {"phrase": "ün {text}"}),
        ("<OCR>", "ocr", {}),
        ("<OCR_WITH_REGION>", "ocr_with_regions", {}),
        (f"<REGION_TO_SEGMENTATION>{REGION_TOKENS}", SEGMENTATION, {"region": REGION}),
        (f"<REGION_TO_CATEGORY>{REGION_TOKENS}", DESCRIPTION, {"detail": "category"}),
        (f"<REGION_TO_DESCRIPTION>{REGION_TOKENS}", DESCRIPTION, {"detail": "description"}),
        (f"<REGION_TO_OCR>{REGION_TOKENS}", DESCRIPTION, {"detail": "text"}),
    ],
)
def test_task_token_and_its_prompt(text: str, task_id: str, values: dict[str, Any]) -> None:
    """The token is read as its task, and the task has the sentence of transformers' processor."""
    asked_task = read_prompt(FLORENCE, f" {text}")
    assert asked_task is not None
    plain = {name: value for name, value in values.items() if name != "region"}
    assert (asked_task.task_id, asked_task.values) == (task_id, plain)
    if shares := asked_task.region_shares:
        sides = zip(shares, IMAGE_WH * 2, strict=True)
        values = plain | {"region": [share * side for share, side in sides]}
    (prompt,) = prompts(task_id, **values)
    processor = Florence2Processor.from_pretrained(ROOT / FLORENCE.source)
    sentence = processor._construct_prompts(text)[0]
    assert "".join(segment for segment, _ in prompt) == sentence
    assert [segment for segment, is_control in prompt if is_control] == [REGION_TOKENS] * bool(
        shares
    )


def test_prompt_for_each_name() -> None:
    expected = [[("Locate dog in the image.", False)], [("Locate owl in the image.", False)]]
    assert prompts(VOCABULARY, labels=["dog", "owl"]) == expected
    assert prompts(GROUNDING, phrases=["a dog", "An owl"]) == expected
    untuned = prompts(VOCABULARY, UNTUNED, labels=["a dog"])
    assert untuned == [[("Locate a dog in the image.", False)]]
    masks = prompts(SEGMENTATION, phrase="a dog")
    assert masks == [[("Locate a dog in the image with mask", False)]]


def test_control_tokens_of_a_prompt() -> None:
    (prompt,) = prompts(DESCRIPTION, region=[0, 0, 640, 480])
    tokens = "<loc_0><loc_0><loc_999><loc_999>"
    sentence = [("What does the region ", False), (tokens, True), (" describe?", False)]
    assert prompt == sentence
    (prompt,) = prompts(SEGMENTATION, phrase="<loc_5></s>")
    assert prompt == [("Locate <loc_5></s> in the image with mask", False)]
    override = TaskOverride("<DocVQA>Answer <short>: {question}")
    entry = replace(FLORENCE, tasks={QUESTIONS: override})
    (prompt,) = prompts(QUESTIONS, entry, question="<VQA>{text} <OD>?")
    question = (": <VQA>{text} <OD>?", False)
    assert prompt == [("<DocVQA>", True), ("Answer ", False), ("<short>", True), question]


def test_unsupported_request_is_refused() -> None:
    entry = replace(FLORENCE, tasks={"ocr": TaskOverride(None)})
    with pytest.raises(UnsupportedTask, match="florence-2-mini does not offer ocr; it offers capt"):
        prompts("ocr", entry)
    with pytest.raises(UnsupportedTask, match="supports language en only, not fr") as caught:
        prompts("captioning", language="fr")
    assert caught.value.param == "language"
    for question in ("why?", "<s>", "<OD>", "is <VQA> a token?"):
        with pytest.raises(UnsupportedTask, match="florence-2-base does not offer visual_question"):
            prompts(QUESTIONS, UNTUNED, question=question)


@pytest.mark.parametrize("region", [[0, 0, 640.5, 10], [0, 0, 10, 481], [700, 500, 800, 600]])
def test_region_beyond_the_image_is_refused(region: list[float]) -> None:
    with pytest.raises(ParameterError, match="x from 0 to 640, y from 0 to 480") as caught:
        prompts(DESCRIPTION, region=region)
    assert caught.value.param == "region"


WRONG = [
    "<NOTHING>",
    "<OD> cats",
    "<REGION_TO_OCR>",
    "<REGION_TO_OCR><loc_1><loc_2><loc_3>",
    "<REGION_TO_OCR>x",
]


@pytest.mark.parametrize("text", WRONG)
def test_wrong_input_of_token_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="<") as caught:
        read_prompt(FLORENCE, text)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("text", ["", "what is it?", "OD", "<od>", "is <OD> a token?"])
def test_other_text_has_no_task(text: str) -> None:
    assert read_prompt(FLORENCE, text) is None


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for prompt in (text, f"<OD>{text}", f"<REGION_TO_OCR>{text}", f"<{text}>"):
        with suppress(ParameterError):
            read_prompt(FLORENCE, prompt)


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("<GENERATE_TAGS>", [("<GENERATE_TAGS>", True, True)]),
        ("<VQA>why <s>?", [("<VQA>", True, True), ("why <s>?", False, False)]),
    ],
)
def test_token_of_a_fine_tune(text: str, segments: list[tuple[str, bool, bool]]) -> None:
    asked_task = read_prompt(UNTUNED, text)
    assert asked_task == AskedTask(QUESTIONS, {"question": text})
    parameters = parse_parameters(TASKS[QUESTIONS], asked_task.values)
    (prompt,) = task_prompts(UNTUNED, QUESTIONS, parameters, IMAGE_WH)
    assert [(part.text, part.is_control, part.is_token) for part in prompt] == segments


def test_token_of_a_template() -> None:
    overrides = {
        QUESTIONS: TaskOverride("<VQA>{question}"),
        SEGMENTATION: TaskOverride("{phrase}"),
        "captioning": TaskOverride("<MIXED_CAPTION>"),
        DESCRIPTION: TaskOverride("<REGION_TO_TAGS>{region}"),
    }
    entry = replace(UNTUNED, tasks=overrides)
    assert read_prompt(entry, "<VQA>why?") == AskedTask(QUESTIONS, {"question": "why?"})
    assert read_prompt(entry, "<MIXED_CAPTION>") == AskedTask("captioning", {})
    message = r"<ANALYZE> is not a task token of florence-2-base; .* template: in its catalog entry"
    for text in ("<ANALYZE>", "<ANALYZE>" + "<loc_5>" * 4):
        with pytest.raises(ParameterError, match=message):
            read_prompt(entry, text)
