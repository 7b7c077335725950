"""Released models are asked as they were trained: nothing of theirs follows an embedded model."""

from dataclasses import replace
from typing import Any

import pytest

from tasks.catalog import CatalogEntry, CatalogError, load_catalog
from tasks.errors import UnsupportedTask
from tasks.families import FAMILIES
from tasks.prompts import AskedTask
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import CATALOG, PALIGEMMA, ROOT

CATALOG_FILE = ROOT / "models" / "catalog.yaml"
EMBEDDED = [entry for entry in CATALOG.values() if entry.source.startswith("models/")]
RELEASED = [entry for entry in CATALOG.values() if entry not in EMBEDDED]
SIZE_WH = (1000, 500)
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("captioning", {}),
    ("captioning", {"detail": "detailed"}),
    ("object_detection", {}),
    ("open_vocabulary_detection", {"labels": ["a green car", "The dog"]}),
    ("phrase_grounding", {"caption": "a green car"}),
    ("phrase_grounding", {"phrases": ["a green car", "The dog"]}),
    ("region_proposal", {}),
    ("dense_region_captioning", {}),
    ("instance_segmentation", {"phrase": "a green car"}),
    ("instance_segmentation", {"phrases": ["a green car", "The dog"]}),
    ("ocr", {}),
    ("ocr_with_regions", {}),
    ("visual_question_answering", {"question": "why?"}),
]
QUESTION = {"question": "Which? ; Context: N/A ; Options: (A) cat (B) dog"}


def texts(entry: CatalogEntry, task_id: str, values: dict[str, Any]) -> list[str]:
    parameters = parse_parameters(TASKS[task_id], values)
    prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, SIZE_WH)
    return ["".join(segment.text for segment in prompt) for prompt in prompts]


def fine_tune(name: str) -> CatalogEntry:
    model_id = f"paligemma-3b-ft-{name}"
    return load_catalog(CATALOG_FILE, [model_id])[model_id]


def test_options_that_embedded_models_need_are_set_on_them_only() -> None:
    assert [entry.id for entry in EMBEDDED] == ["florence-2-mini", "paligemma-mini"]
    for entry in RELEASED:
        assert not entry.drops_articles
        assert not entry.one_name_per_prompt


@pytest.mark.parametrize("entry", RELEASED, ids=lambda entry: str(entry.id))
def test_released_prompts_and_grammars_are_those_of_the_bare_family(entry: CatalogEntry) -> None:
    language = FAMILIES[entry.family]
    bare = replace(
        entry, tasks={}, forced_names=True, one_name_per_prompt=False, drops_articles=False
    )
    for task_id, values in REQUESTS:
        if task_id not in entry.task_ids or entry.template(task_id) is not None:
            continue
        assert texts(entry, task_id, values) == texts(bare, task_id, values)
        parameters = parse_parameters(TASKS[task_id], values)
        grammar = language.answer_grammar(bare, task_id, parameters)
        assert language.answer_grammar(entry, task_id, parameters) == grammar


@pytest.mark.parametrize("room", ["tasks", "runners", "wire", "imaging"])
def test_no_code_names_an_embedded_model(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not any(entry.id in text for entry in EMBEDDED), path


def test_florence2_is_asked_for_a_name_with_its_article() -> None:
    request = ("open_vocabulary_detection", {"labels": ["a green car", "dog"]})
    released = texts(CATALOG["florence-2-base"], *request)
    assert released == ["Locate a green car in the image.", "Locate dog in the image."]
    embedded = texts(CATALOG["florence-2-mini"], *request)
    assert embedded == ["Locate green car in the image.", "Locate dog in the image."]


@pytest.mark.parametrize(
    ("name", "task_id", "values", "expected"),
    [
        ("vqav2-224", "visual_question_answering", {"question": "why?"}, "answer en why?"),
        ("docvqa-896", "visual_question_answering", {"question": "why?"}, "why?"),
        (
            "ai2d-448",
            "visual_question_answering",
            {"question": "What is A? choose from: cat ; dog"},
            "answer en  What is A? choose from: cat \t dog",
        ),
        (
            "science-qa-224",
            "visual_question_answering",
            QUESTION,
            "Question: Which?\nContext: N/A\nOptions: (A) cat (B) dog\nAnswer:",
        ),
        ("coco35l-224", "captioning", {"language": "th"}, "caption th"),
        ("textcaps-224", "captioning", {}, "caption en"),
        ("refcoco-seg-448", "instance_segmentation", {"phrase": "left cat"}, "left cat"),
    ],
)
def test_a_fine_tune_offers_what_it_was_trained_on(
    name: str, task_id: str, values: dict[str, Any], expected: str
) -> None:
    entry = fine_tune(name)
    assert entry.task_ids == (task_id,)
    assert (entry.mask_decoder is not None) == (task_id == "instance_segmentation")
    assert texts(entry, task_id, values) == [expected]
    asked = FAMILIES["paligemma"].read_prompt(entry, expected)
    if task_id != "visual_question_answering":
        assert asked is not None
        assert asked.task_id == task_id


def test_refcoco_segments_one_sentence_at_a_time() -> None:
    values = {"phrases": ["left cat", "dog"]}
    assert texts(fine_tune("refcoco-seg-224"), "instance_segmentation", values) == values["phrases"]


@pytest.mark.parametrize(
    ("task_id", "values", "message"),
    [
        ("captioning", {"language": "de"}, "supports language en only, not de"),
        ("captioning", {"detail": "detailed"}, "supports detail short only, not detailed"),
    ],
)
def test_a_template_asks_in_one_way(task_id: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedTask, match=message):
        texts(fine_tune("cococap-224"), task_id, values)


def test_other_tasks_and_names_of_fine_tunes_are_refused() -> None:
    with pytest.raises(UnsupportedTask, match="does not offer ocr; it offers captioning"):
        texts(fine_tune("cococap-224"), "ocr", {})
    with pytest.raises(CatalogError, match=r"nlvr2-224 is not in the catalog: \* of .* one of"):
        fine_tune("nlvr2-224")


def test_pretrained_checkpoints_describe_a_region() -> None:
    pretrained = CATALOG["paligemma-3b-pt-224"]
    prompt = "caption <loc0102><loc0102><loc1023><loc0512>"
    values: dict[str, Any] = {"region": [99.8, 49.9, 500.5, 500.0]}
    assert texts(pretrained, "region_description", values) == [prompt]
    asked = FAMILIES["paligemma"].read_prompt(pretrained, prompt)
    assert asked is not None
    assert asked == AskedTask("region_description", {}, asked.region_shares)
    assert asked.region_shares == pytest.approx((0.0997, 0.0997, 0.5005, 1), abs=1e-4)
    with pytest.raises(UnsupportedTask, match="detail description only, not category"):
        texts(pretrained, "region_description", values | {"detail": "category"})
    with pytest.raises(UnsupportedTask, match="paligemma-mini does not offer region_description"):
        texts(PALIGEMMA, "region_description", values)
