"""A plan is refused as a whole, by the step and the field that are wrong, before anything runs."""

from operator import attrgetter
from typing import Any

import pytest

from service.analysis import Plan, filled, parse_plan, used_names
from service.errors import ServiceError
from tests.support.fake_service import FLORENCE_ID, PALIGEMMA_ID, served_models

THINGS = {"id": "things", "task": "object_detection"}
WORDS = {"id": "words", "task": "ocr_with_regions"}
id_of = attrgetter("id")


def plan(*steps: dict[str, Any], max_steps: int = 16) -> Plan:
    return parse_plan({"steps": list(steps)}, served_models(), max_steps)


def refusal(*steps: dict[str, Any], max_steps: int = 16) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        plan(*steps, max_steps=max_steps)
    return caught.value


def of(step: dict[str, Any], **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a step, and one about each of its boxes."""
    return step, {"id": "each", "task": "region_description", "each": step["id"], **fields}


@pytest.mark.parametrize(
    ("steps", "is_needed"),
    [
        (of(THINGS), False),
        (of(THINGS, view="crop"), True),
        ((THINGS, {"id": "all", "task": "captioning", "model": PALIGEMMA_ID}), True),
    ],
)
def test_pixels_are_needed_again(steps: tuple[Any, ...], is_needed: bool) -> None:
    assert plan(*steps).needs_pixels_again == is_needed


def test_models_and_regions_of_steps() -> None:
    text = {"id": "text", "task": "ocr", "models": [PALIGEMMA_ID, FLORENCE_ID]}
    mask = {"id": "mask", "task": "instance_segmentation", "each": "things", "phrase": "{label}"}
    steps = plan(*reversed(of(THINGS)), text, mask | {"model": PALIGEMMA_ID}).steps
    models = [list(map(id_of, step.models)) for step in steps]
    assert models == [[FLORENCE_ID], [FLORENCE_ID], [FLORENCE_ID, PALIGEMMA_ID], [PALIGEMMA_ID]]
    assert [step.options.id for step in steps if step.has_region] == ["each"]


@pytest.mark.parametrize(
    ("steps", "param", "message"),
    [
        (of(THINGS, each="thing"), "steps[1].each", "steps are things, each"),
        (of({"id": "all", "task": "ocr"}), "steps[1].each", "ocr has no boxes"),
        ((THINGS, THINGS), "steps[1].id", "'things' is repeated"),
        (({**THINGS, "id": "a b"},), "steps[0].id", "a b"),
        (({**THINGS, "id": "a" * 65},), "steps[0].id", "aaa"),
        (({"task": "ocr"},), "steps[0].id", "id is missing"),
        (({"id": "a"},), "steps[0].task", "task is missing"),
        (({"id": "a", "task": "x"},), "steps[0].task", "unknown task 'x'"),
        (({**THINGS, "labels": ["a"]},), "steps[0].labels", "not a parameter"),
        (({**THINGS, "image": "a"},), "steps[0].image", "unknown field"),
        (({**THINGS, "stream": True},), "steps[0].stream", "unknown field"),
        (({**THINGS, "temperature": 9},), "steps[0].temperature", "9"),
        (({**THINGS, "view": "crop"},), "steps[0].view", "needs each"),
        (({**THINGS, "max_each": 3},), "steps[0].max_each", "needs each"),
        (of(THINGS, min_precision=0.9), "steps[1].min_precision", "proved about images"),
        (of(THINGS, margin=2), "steps[1].margin", "margin is 2"),
        (of(THINGS, max_each=0), "steps[1].max_each", "max_each is 0"),
        (of(THINGS, view="tile"), "steps[1].view", "view is 'tile'"),
        (of(THINGS, task="captioning"), "steps[1].each", "the same answer"),
        (
            (THINGS, {"id": "a", "task": "instance_segmentation", "phrase": "{label}"}),
            "steps[1]",
            "needs each",
        ),
        (
            of(THINGS, task="visual_question_answering", question="is it {text}?"),
            "steps[1]",
            "{text} is not a text of 'things'; its objects fill {label}",
        ),
        (
            of(WORDS, task="visual_question_answering", question="is it {label}?"),
            "steps[1]",
            "fill {text}",
        ),
        ((3,), "steps[0]", "must be an object"),
        ((), "steps", "1 to 16 steps, not 0 steps"),
    ],
)
def test_wrong_step_is_refused(steps: tuple[Any, ...], param: str, message: str) -> None:
    error = refusal(*steps)
    assert (error.code, error.param) == ("invalid_request", param)
    assert message in error.message


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"model": "gpt"}, "unknown_model"),
        ({"models": ["gpt"]}, "unknown_model"),
        ({"model": PALIGEMMA_ID}, "unsupported_task"),
    ],
)
def test_wrong_model_of_a_step(fields: dict[str, Any], code: str) -> None:
    error = refusal(THINGS | fields)
    assert (error.code, error.param) == (code, f"steps[0].{min(fields)}")


def test_cycle_is_refused() -> None:
    steps = [
        {"id": "one", "task": "instance_segmentation", "each": "two"},
        {"id": "two", "task": "instance_segmentation", "each": "three"},
        {"id": "three", "task": "instance_segmentation", "each": "two"},
    ]
    error = refusal(*steps)
    assert error.param in ("steps[1].each", "steps[2].each")
    assert "two -> three -> two" in error.message or "three -> two -> three" in error.message
    assert (
        "itself -> itself"
        in refusal({"id": "itself", "task": "instance_segmentation", "each": "itself"}).message
    )


def test_number_of_steps_is_limited() -> None:
    steps = [{"id": f"a{number}", "task": "ocr"} for number in range(3)]
    assert "1 to 2 steps, not 3 steps" in refusal(*steps, max_steps=2).message
    assert len(plan(*steps, max_steps=3).steps) == 3


@pytest.mark.parametrize(
    ("document", "param"),
    [
        ({}, "steps"),
        ({"steps": {}}, "steps"),
        ({"steps": [THINGS], "task": "ocr"}, "task"),
        ({"steps": [THINGS], "stream": "yes"}, "stream"),
    ],
)
def test_wrong_field_of_the_request(document: dict[str, Any], param: str) -> None:
    with pytest.raises(ServiceError) as caught:
        parse_plan(document, served_models(), 16)
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)


def test_strings_of_parameters_are_filled() -> None:
    fields = {
        "task": "{label}",
        "labels": ["{label}", "a {label} {other}", 3],
        "question": "{text}? {label}",
        "region": [1, 2],
    }
    assert used_names(fields) == {"label", "text"}
    assert filled(fields, {"label": "cat", "text": "exit"}) == {
        "task": "{label}",
        "labels": ["cat", "a cat {other}", 3],
        "question": "exit? cat",
        "region": [1, 2],
    }


def test_filled_text_is_not_filled_again() -> None:
    fields = {"phrase": "{label}{text}"}
    texts = {"label": "{text}", "text": r"\1{label}<loc_1>"}
    assert filled(fields, texts) == {"phrase": r"{text}\1{label}<loc_1>"}
    assert fields == {"phrase": "{label}{text}"}
