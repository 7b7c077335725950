"""Answers to learn: the family's parser reads each back as the labels that it was made of."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from diptych_client.matching import LabelledBox
from export.errors import ExportError
from export.tuning.examples import TUNED_TASKS, Example, LabelledImage, make_examples
from tasks.catalog import CatalogEntry, TaskOverride
from tasks.families import FAMILIES
from tasks.parsing import GeneratedText
from tasks.prompts import Prompt
from tasks.results import BoxXyxy, DetectionsResult
from tasks.table import TaskParameters
from tests.support.catalog import CATALOG

SIZE_WH = (320, 240)
CAT, DOG, BIRD = (
    LabelledBox(*row)
    for row in (
        ("cat", (9.0, 9.0, 60.0, 70.0)),
        ("dog", (99.0, 50.0, 300.0, 200.0)),
        ("bird", (5.0, 5.0, 20.0, 20.0)),
    )
)
IMAGE = LabelledImage(
    Path("a.png"),
    SIZE_WH,
    objects=(DOG, CAT),
    captions=("a cat and a dog", "two animals"),
    text="EXIT",
    questions=(("how many?", ("2", "two", "2")),),
    phrases=(DOG, CAT),
)
OTHER = LabelledImage(Path("b.png"), SIZE_WH, objects=(BIRD,))
NONE = LabelledImage(Path("c.png"), SIZE_WH, objects=())
FLORENCE2 = CATALOG["florence-2-base"]
PALIGEMMA = CATALOG["paligemma-2-3b-pt-224"]


def text(segments: Prompt) -> str:
    return "".join(segment.text for segment in segments)


def examples(entry: CatalogEntry, task: str, *images: LabelledImage) -> list[Example]:
    return [
        each
        for own in make_examples(entry, task, images or (IMAGE, OTHER, NONE), seed=0)
        for each in own
    ]


def of_image(found: Sequence[Example], image: LabelledImage) -> list[tuple[str, str]]:
    return [(text(each.prompt), text(each.answer)) for each in found if each.image == image.path]


def parsed(
    entry: CatalogEntry, task: str, parameters: TaskParameters, answers: Sequence[str]
) -> list[LabelledBox]:
    texts = [GeneratedText(each, (len(each),), (-0.1,), "stop") for each in answers]
    result = FAMILIES[entry.family].parse_answer(
        entry, task, parameters, texts, SIZE_WH, "polygon", None
    )
    assert isinstance(result, DetectionsResult)
    return [LabelledBox(each.label, each.box) for each in result.detections]


def assert_same(found: Sequence[LabelledBox], expected: Sequence[LabelledBox]) -> None:
    """Compare labels, and boxes to a bin of 1000 on a side of 320 pixels."""
    assert [each.label for each in found] == [each.label for each in expected]
    for each, true in zip(found, expected, strict=True):
        assert each.box_xyxy == pytest.approx(true.box_xyxy, abs=0.35)


def test_object_detection_writes_all_objects_from_left_to_right() -> None:
    found = examples(FLORENCE2, "object_detection")
    ((prompt, answer),) = of_image(found, IMAGE)
    assert prompt == "Locate the objects with category name in the image."
    assert_same(parsed(FLORENCE2, "object_detection", TaskParameters(), [answer]), (CAT, DOG))
    assert of_image(found, NONE) == [(prompt, "")]


def test_paligemma_detects_all_names_by_one_prompt_and_leaves_absent_ones_out() -> None:
    ((prompt, answer),) = of_image(examples(PALIGEMMA, "open_vocabulary_detection"), IMAGE)
    names = prompt.removeprefix("detect ").split(" ; ")
    assert sorted(names) == ["bird", "cat", "dog"]
    assert answer.count(" ; ") == 1
    parameters = TaskParameters(labels=tuple(names))
    assert_same(parsed(PALIGEMMA, "open_vocabulary_detection", parameters, [answer]), (CAT, DOG))


@pytest.mark.parametrize(
    "entry", [FLORENCE2, replace(PALIGEMMA, one_name_per_prompt=True)], ids=lambda each: each.id
)
def test_a_model_with_one_name_in_each_prompt_has_an_empty_answer_for_an_absent_one(
    entry: CatalogEntry,
) -> None:
    rows = of_image(examples(entry, "open_vocabulary_detection"), IMAGE)
    answers = {
        name: answer
        for name in ("bird", "cat", "dog")
        for prompt, answer in rows
        if f" {name}" in prompt
    }
    assert answers["bird"] == ""
    for true in (CAT, DOG):
        parameters = TaskParameters(labels=(true.label,))
        assert_same(
            parsed(entry, "open_vocabulary_detection", parameters, [answers[true.label]]), (true,)
        )


def test_an_image_without_objects_is_asked_for_an_absent_one() -> None:
    ((prompt, answer),) = of_image(examples(PALIGEMMA, "open_vocabulary_detection"), NONE)
    assert prompt in {f"detect {name}" for name in ("bird", "cat", "dog")}
    assert answer == ""


@pytest.mark.parametrize("entry", [FLORENCE2, PALIGEMMA], ids=lambda each: each.id)
def test_phrases_are_grounded(entry: CatalogEntry) -> None:
    image = replace(IMAGE, phrases=(CAT, replace(DOG, label="the big dog")))
    rows = of_image(examples(entry, "phrase_grounding", image), image)
    parameters = TaskParameters(phrases=("cat", "the big dog"))
    found = parsed(entry, "phrase_grounding", parameters, [answer for _, answer in rows])
    assert_same(found, image.phrases)


def test_regions_have_no_labels() -> None:
    ((_, answer),) = of_image(examples(FLORENCE2, "region_proposal"), IMAGE)
    assert_same(
        parsed(FLORENCE2, "region_proposal", TaskParameters(), [answer]),
        [replace(x, label="") for x in (CAT, DOG)],
    )


@pytest.mark.parametrize("entry", [FLORENCE2, PALIGEMMA], ids=lambda each: each.id)
def test_texts_are_the_answers(entry: CatalogEntry) -> None:
    captions = [answer for _, answer in of_image(examples(entry, "captioning"), IMAGE)]
    assert captions == list(IMAGE.captions)
    assert [answer for _, answer in of_image(examples(entry, "ocr"), IMAGE)] == ["EXIT"]


def test_florence2_repeats_the_region_after_its_text() -> None:
    region: BoxXyxy = (32.0, 24.0, 160.0, 120.0)
    image = replace(IMAGE, region_xyxy=region)
    ((prompt, answer),) = of_image(examples(FLORENCE2, "region_description", image), image)
    locations = "<loc_100><loc_100><loc_500><loc_500>"
    assert (prompt, answer) == (f"What does the region {locations} describe?", f"EXIT{locations}")


def test_the_most_frequent_answer_is_learnt_with_the_template_of_the_entry() -> None:
    task = "visual_question_answering"
    assert of_image(examples(PALIGEMMA, task), IMAGE) == [("answer en how many?", "2")]
    own = replace(FLORENCE2, tasks={task: TaskOverride("<DocVQA>{question}")})
    assert of_image(examples(own, task), IMAGE) == [("<DocVQA>how many?", "2")]


def test_labels_are_never_control_tokens() -> None:
    image = replace(IMAGE, objects=(LabelledBox("<loc_5>", CAT.box_xyxy),))
    (example,) = examples(FLORENCE2, "object_detection", image)
    assert [segment.is_control for segment in example.answer] == [False, True]


@pytest.mark.parametrize(
    ("entry", "task", "image", "message"),
    [
        (
            FLORENCE2,
            "object_detection",
            replace(IMAGE, objects=(LabelledBox("cat;dog", CAT.box_xyxy),)),
            "';'",
        ),
        (
            FLORENCE2,
            "object_detection",
            replace(IMAGE, objects=None),
            "has no labels of object_detection",
        ),
        (PALIGEMMA, "object_detection", IMAGE, "does not offer object_detection"),
        (FLORENCE2, "visual_question_answering", IMAGE, "does not offer visual_question_answering"),
        (FLORENCE2, "instance_segmentation", IMAGE, "no labels teach instance_segmentation"),
        (
            FLORENCE2,
            "region_description",
            replace(IMAGE, region_xyxy=(0.0, 0.0, 999.0, 9.0)),
            "within the image",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    entry: CatalogEntry, task: str, image: LabelledImage, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        examples(entry, task, image)


def test_the_same_seed_gives_the_same_examples() -> None:
    first, second = (examples(FLORENCE2, "open_vocabulary_detection") for _ in range(2))
    assert first == second
    assert len(TUNED_TASKS) == len(set(TUNED_TASKS))
