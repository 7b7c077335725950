"""Every task, as the page shows what the API answers."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tasks.table import TASKS
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import (
    SAMPLE,
    api_answer,
    api_response,
    drawn,
    example_answer,
    example_fields,
)

FLORENCE, PALIGEMMA = EMBEDDED
TOLERANCE_PX = 0.1  # the browser places to 1/64 px of the screen


def offering(client: httpx.Client) -> dict[str, list[str]]:
    return {task["id"]: task["models"] for task in client.get("/v1/tasks").json()["data"]}


def assert_drawn(shapes: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    expected = drawn(result)
    assert [shape["label"] for shape in shapes] == [label for label, _ in expected]
    for shape, (_, corners) in zip(shapes, expected, strict=True):
        assert list(chain.from_iterable(shape["points"])) == pytest.approx(
            list(chain.from_iterable(corners)), abs=TOLERANCE_PX
        )


@pytest.mark.parametrize("task_id", TASKS)
def test_every_task_shows_what_the_api_answers(
    opened: Playground, client: httpx.Client, task_id: str
) -> None:
    offered = offering(client)[task_id]
    opened.choose_task(task_id)
    opened.run()
    for model in offered:
        response = api_response(client, model, task_id, **example_fields(TASKS[task_id]))
        if response.is_success:
            assert_shown(opened, model, response.json())
        else:  # a caption is nothing that paligemma-mini grounds
            assert (task_id, model) == ("phrase_grounding", PALIGEMMA)
            expect(opened.panel(model).locator(".failed")).to_contain_text(
                response.json()["error"]["message"]
            )
    not_offered = opened.page.locator(".panel[data-state=not-offered]")
    assert not_offered.count() == len(EMBEDDED) - len(offered)


def assert_shown(playground: Playground, model: str, answer: dict[str, Any]) -> None:
    panel = playground.panel(model)
    if "text" in answer["result"]:
        expect(panel.locator(".answer-text")).to_have_text(answer["result"]["text"])
    else:
        assert drawn(answer["result"])
        assert_drawn(playground.shapes(model), answer["result"])
        expect(panel.locator(".objects tbody tr")).to_have_count(len(drawn(answer["result"])))
    assert panel.locator("pre.raw").text_content() == answer["raw_text"]
    expect(panel.locator(".usage")).to_contain_text(f"→ {answer['usage']['generated_tokens']}")
    scores = "calibrated probabilities" if answer["calibrated"] else "not calibrated"
    shown = [] if "text" in answer["result"] else [scores]
    assert panel.locator(".usage div", has_text="Scores").locator("dd").all_text_contents() == shown
    assert panel.locator(".legend .stage").count() == len(answer["timings_ms"]) - 1


def test_the_boxes_of_a_recipe_open_into_their_answers(playground: Playground) -> None:
    playground.open(task="describe-everything", sample=SAMPLE)
    panel = playground.panel(FLORENCE)
    expect(playground.page.locator(".panel")).to_have_count(1)
    things, what, whole = playground.answer(FLORENCE)["steps"]
    assert_drawn(playground.shapes(FLORENCE), things["answers"][0]["result"])
    expect(panel.get_by_text(whole["answers"][0]["result"]["text"])).to_be_visible()
    texts = {each["of"]: each["result"]["text"] for each in what["answers"]}
    for index, button in enumerate(panel.locator("button.object").all()):
        answer = panel.locator(".more").nth(index)
        expect(answer).to_be_hidden()
        button.press("Enter")
        expect(button).to_have_attribute("aria-expanded", "true")
        expect(answer.locator("dd")).to_have_text(texts[index])
    assert "/v1/analyze" in playground.copied(FLORENCE, "curl")


def test_shapes_lie_over_what_they_name_at_any_size_and_zoom(
    playground: Playground, client: httpx.Client
) -> None:
    playground.open(task="open_vocabulary_detection", sample=SAMPLE)
    expected = {
        model: example_answer(client, model, "open_vocabulary_detection")["result"]
        for model in EMBEDDED
    }
    for width in (1440, 1024, 390):
        playground.page.set_viewport_size({"width": width, "height": 800})
        for _ in range(3):
            for model in EMBEDDED:
                assert_drawn(playground.shapes(model), expected[model])
            playground.page.get_by_role("button", name="Zoom in").click()
        playground.page.get_by_role("button", name="Show the whole image").click()


def test_a_model_that_does_not_offer_the_task_says_what_it_offers(
    playground: Playground, client: httpx.Client
) -> None:
    playground.open(task="object_detection", sample=SAMPLE)
    note = playground.panel(PALIGEMMA).locator(".note")
    expect(note).to_contain_text("does not support Object detection")
    offered = [task for task, models in offering(client).items() if PALIGEMMA in models]
    assert note.get_by_role("link").count() == len(offered)
    note.get_by_role("link", name="OCR").click()
    expect(playground.panel(PALIGEMMA).locator(".answer-text")).to_have_text("MGQL")


@pytest.mark.parametrize("height", [700, 1200])  # a preview narrower than its frame, and a wide one
def test_a_region_is_drawn_on_the_image_and_asked_about(
    playground: Playground, client: httpx.Client, height: int
) -> None:
    playground.page.set_viewport_size({"width": 1280, "height": height})
    playground.open()
    playground.choose_task("region_description")
    frame = playground.page.locator("#preview img").bounding_box()
    assert frame is not None
    scale = frame["width"] / 640
    wanted = [16, 135, 220, 288]  # the red triangle
    mouse = playground.page.mouse
    mouse.move(frame["x"] + wanted[2] * scale, frame["y"] + wanted[3] * scale)
    mouse.down()
    mouse.move(frame["x"] + wanted[0] * scale, frame["y"] + wanted[1] * scale, steps=3)
    mouse.up()
    fields = playground.page.locator("[data-field=region] input")
    region = [float(fields.nth(index).input_value()) for index in range(4)]
    assert region == pytest.approx(wanted, abs=2)
    playground.run()
    answer = api_answer(client, FLORENCE, "region_description", region=region)
    assert "red triangle" in answer["result"]["text"]
    expect(playground.panel(FLORENCE).locator(".answer-text")).to_have_text(
        answer["result"]["text"]
    )


def test_parameters_and_options_are_those_that_the_service_lists(
    playground: Playground, client: httpx.Client
) -> None:
    tasks = {task["id"]: task["parameters"] for task in client.get("/v1/tasks").json()["data"]}
    alternatives = client.get("/openapi.json").json()["components"]["schemas"]["predict"]["oneOf"]
    playground.open()
    for task_id, schema in tasks.items():
        playground.choose_task(task_id)
        shown = playground.page.locator("#parameters [data-field]").evaluate_all(
            "all => all.map(e => e.dataset.field)"
        )
        assert shown == list(schema["properties"])
    options = playground.page.locator("#option-fields [data-field]").evaluate_all(
        "all => all.map(e => e.dataset.field)"
    )
    common = set.intersection(*(set(each["properties"]) for each in alternatives))
    assert set(options) == common - {"image", "task", "model", "mask_format", "stream"}
