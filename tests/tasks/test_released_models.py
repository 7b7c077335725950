"""Released models are asked as they were trained: nothing of theirs follows an embedded model."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.catalog import CatalogEntry, load_catalog
from tasks.errors import UnsupportedTask
from tasks.families import FAMILIES, RUNNER_FAMILIES
from tasks.prompts import AskedTask
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG, PALIGEMMA, ROOT

CATALOG_FILE = ROOT / "models" / "catalog.yaml"
EMBEDDED = [entry for entry in CATALOG.values() if entry.source.startswith("models/")]
RELEASED = [entry for entry in CATALOG.values() if entry not in EMBEDDED]
VOCABULARY = "open_vocabulary_detection"
GROUNDING = "phrase_grounding"
MASKS = "instance_segmentation"
QUESTIONS = "visual_question_answering"
REGION = "region_description"
NAMES = ["a green car", "The dog"]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("captioning", {}),
    ("captioning", {"detail": "detailed"}),
    ("object_detection", {}),
    (VOCABULARY, {"labels": NAMES}),
    (GROUNDING, {"caption": "a green car"}),
    (GROUNDING, {"phrases": NAMES}),
    ("region_proposal", {}),
    ("dense_region_captioning", {}),
    (MASKS, {"phrase": "a green car"}),
    (MASKS, {"phrases": NAMES}),
    ("ocr", {}),
    ("ocr_with_regions", {}),
    (QUESTIONS, {"question": "why?"}),
]


def texts(entry: CatalogEntry, task_id: str, values: dict[str, Any]) -> list[str]:
    parameters = parse_parameters(TASKS[task_id], values)
    prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, (1000, 500))
    return ["".join(segment.text for segment in prompt) for prompt in prompts]


def fine_tune(name: str) -> CatalogEntry:
    model_id = f"paligemma-3b-ft-{name}"
    return load_catalog(CATALOG_FILE, [model_id])[model_id]


@pytest.mark.parametrize("entry", RELEASED, ids=lambda entry: str(entry.id))
def test_released_models_are_as_their_family(entry: CatalogEntry) -> None:
    """Prompts and grammars are those of the bare family: options are for embedded models."""
    assert not entry.drops_articles
    assert not entry.one_name_per_prompt
    language = RUNNER_FAMILIES[entry.family]
    bare = replace(entry, tasks={}, forced_names=True)
    for task_id, values in REQUESTS:
        if task_id in entry.task_ids and task_id not in entry.templates:
            assert texts(entry, task_id, values) == texts(bare, task_id, values)
            parameters = parse_parameters(TASKS[task_id], values)
            grammar = language.answer_grammar(bare, task_id, parameters)
            assert language.answer_grammar(entry, task_id, parameters) == grammar


@pytest.mark.parametrize(
    ("name", "task_id", "values", "expected"),
    [
        ("vqav2-224", QUESTIONS, {"question": "why?"}, "answer en why?"),
        ("docvqa-896", QUESTIONS, {"question": "why?"}, "why?"),
        ("ai2d-448", QUESTIONS, {"question": "A? cat ; dog"}, "answer en  A? cat \t dog"),
        (
            "science-qa-224",
            QUESTIONS,
            {"question": "Which? ; Context: N/A ; Options: (A) cat (B) dog"},
            "Question: Which?\nContext: N/A\nOptions: (A) cat (B) dog\nAnswer:",
        ),
        ("coco35l-224", "captioning", {"language": "th"}, "caption th"),
        ("textcaps-224", "captioning", {}, "caption en"),
        ("refcoco-seg-448", MASKS, {"phrase": "left cat"}, "left cat"),
    ],
)
def test_fine_tunes(name: str, task_id: str, values: dict[str, Any], expected: str) -> None:
    entry = fine_tune(name)
    assert entry.task_ids == (task_id,)
    assert (entry.mask_decoder is not None) == (task_id == MASKS)
    assert texts(entry, task_id, values) == [expected]
    asked_task = FAMILIES["paligemma"].read_prompt(entry, expected)
    assert task_id == QUESTIONS or (asked_task is not None and asked_task.task_id == task_id)


def test_refcoco_segments_one_sentence_at_a_time() -> None:
    values = {"phrases": ["left cat", "dog"]}
    assert texts(fine_tune("refcoco-seg-224"), MASKS, values) == values["phrases"]


@pytest.mark.parametrize(
    ("task_id", "values", "message"),
    [
        ("captioning", {"language": "de"}, "supports language en only, not de"),
        ("captioning", {"detail": "detailed"}, "supports detail short only, not detailed"),
        ("ocr", {}, "does not offer ocr; it offers captioning"),
    ],
)
def test_other_requests_of_a_fine_tune(task_id: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedTask, match=message):
        texts(fine_tune("cococap-224"), task_id, values)


def test_pretrained_checkpoints_describe_a_region() -> None:
    pretrained = CATALOG["paligemma-3b-pt-224"]
    prompt = "caption <loc0102><loc0102><loc1023><loc0512>"
    values: dict[str, Any] = {"region": [99.8, 49.9, 500.5, 500.0]}
    assert texts(pretrained, REGION, values) == [prompt]
    asked_task = FAMILIES["paligemma"].read_prompt(pretrained, prompt)
    assert asked_task is not None
    assert asked_task == AskedTask(REGION, {}, asked_task.region_shares)
    assert asked_task.region_shares == pytest.approx((0.0997, 0.0997, 0.5005, 1), abs=1e-4)
    with pytest.raises(UnsupportedTask, match="detail description only, not category"):
        texts(pretrained, REGION, values | {"detail": "category"})
    with pytest.raises(UnsupportedTask, match="paligemma-mini does not offer region_description"):
        texts(PALIGEMMA, REGION, values)
