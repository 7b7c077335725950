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
    example_answer,
    example_fields,
    objects_of,
)

FLORENCE, PALIGEMMA = EMBEDDED
TOLERANCE_PX = 0.1  # the browser places to 1/64 px of the screen


def offering(client: httpx.Client) -> dict[str, list[str]]:
    return {task["id"]: task["models"] for task in client.get("/v1/tasks").json()["data"]}


def assert_drawn(shapes: Sequence[dict[str, Any]], result: dict[str, Any]) -> None:
    for shape, (label, corners) in zip(shapes, objects_of(result), strict=True):
        assert shape["label"] == label
        points = list(chain.from_iterable(shape["points"]))
        assert points == pytest.approx(list(chain.from_iterable(corners)), abs=TOLERANCE_PX)


@pytest.mark.parametrize("task_id", TASKS)
def test_every_task_shows_the_answers(
    opened: Playground, client: httpx.Client, task_id: str
) -> None:
    models = offering(client)[task_id]
    opened.choose_task(task_id)
    opened.run()
    for model in models:
        response = api_response(client, model, task_id, **example_fields(TASKS[task_id]))
        if response.is_success:
            assert_shown(opened, model, response.json())
        else:  # a caption is nothing that paligemma-mini grounds
            assert (task_id, model) == ("phrase_grounding", PALIGEMMA)
            failure = opened.panel(model).locator(".failed")
            expect(failure).to_contain_text(response.json()["error"]["message"])
    not_offered = opened.page.locator(".panel[data-state=not-offered]")
    assert not_offered.count() == len(EMBEDDED) - len(models)


def assert_shown(playground: Playground, model: str, answer: dict[str, Any]) -> None:
    panel = playground.panel(model)
    scores = panel.locator(".usage div", has_text="Scores").locator("dd").all_text_contents()
    if "text" in answer["result"]:
        expect(panel.locator(".answer-text")).to_have_text(answer["result"]["text"])
        assert scores == []
    else:
        objects = objects_of(answer["result"])
        assert objects
        assert_drawn(playground.shapes(model), answer["result"])
        expect(panel.locator(".objects tbody tr")).to_have_count(len(objects))
        is_calibrated = answer["calibrated"]
        assert scores == ["calibrated probabilities" if is_calibrated else "not calibrated"]
    assert panel.locator("pre.raw").text_content() == answer["raw_text"]
    expect(panel.locator(".usage")).to_contain_text(f"→ {answer['usage']['generated_tokens']}")
    assert panel.locator(".legend .stage").count() == len(answer["timings_ms"]) - 1


def test_boxes_of_a_recipe_open_into_their_answers(playground: Playground) -> None:
    playground.open(task="describe-everything", sample=SAMPLE)
    panel = playground.panel(FLORENCE)
    expect(playground.page.locator(".panel")).to_have_count(1)
    things, descriptions, whole = playground.answer(FLORENCE)["steps"]
    assert_drawn(playground.shapes(FLORENCE), things["answers"][0]["result"])
    expect(panel.get_by_text(whole["answers"][0]["result"]["text"])).to_be_visible()
    texts = {answer["of"]: answer["result"]["text"] for answer in descriptions["answers"]}
    for index, button in enumerate(panel.locator("button.object").all()):
        answer = panel.locator(".more").nth(index)
        expect(answer).to_be_hidden()
        button.press("Enter")
        expect(button).to_have_attribute("aria-expanded", "true")
        expect(answer.locator("dd")).to_have_text(texts[index])
    assert "/v1/analyze" in playground.copied(FLORENCE, "curl")


def test_shapes_lie_over_their_objects(playground: Playground, client: httpx.Client) -> None:
    """At any size and zoom."""
    task = "open_vocabulary_detection"
    playground.open(task=task, sample=SAMPLE)
    results = {model: example_answer(client, model, task)["result"] for model in EMBEDDED}
    for width in (1440, 1024, 390):
        playground.page.set_viewport_size({"width": width, "height": 800})
        for _ in range(3):
            for model, result in results.items():
                assert_drawn(playground.shapes(model), result)
            playground.page.get_by_role("button", name="Zoom in").click()
        playground.page.get_by_role("button", name="Show the whole image").click()


def test_model_says_which_tasks_it_offers(playground: Playground, client: httpx.Client) -> None:
    playground.open(task="object_detection", sample=SAMPLE)
    note = playground.panel(PALIGEMMA).locator(".note")
    expect(note).to_contain_text("does not support Object detection")
    num_offered = sum(PALIGEMMA in models for models in offering(client).values())
    assert note.get_by_role("link").count() == num_offered
    note.get_by_role("link", name="OCR").click()
    expect(playground.answer_text(PALIGEMMA)).to_have_text("MGQL")


@pytest.mark.parametrize("height", [700, 1200])  # a preview narrower than its frame, and a wide one
def test_region_is_dragged_on_the_image(
    playground: Playground, client: httpx.Client, height: int
) -> None:
    playground.page.set_viewport_size({"width": 1280, "height": height})
    playground.open()
    playground.choose_task("region_description")
    frame = playground.page.locator("#preview img").bounding_box()
    assert frame is not None
    scale = frame["width"] / 640
    x1, y1, x2, y2 = triangle = (16, 135, 220, 288)
    mouse = playground.page.mouse
    mouse.move(frame["x"] + x2 * scale, frame["y"] + y2 * scale)
    mouse.down()
    mouse.move(frame["x"] + x1 * scale, frame["y"] + y1 * scale, steps=3)
    mouse.up()
    fields = playground.page.locator("[data-field=region] input").all()
    region = [float(field.input_value()) for field in fields]
    assert region == pytest.approx(triangle, abs=2)
    playground.run()
    answer = api_answer(client, FLORENCE, "region_description", region=region)
    assert "red triangle" in answer["result"]["text"]
    expect(playground.answer_text(FLORENCE)).to_have_text(answer["result"]["text"])


def test_fields_are_those_of_the_service(opened: Playground, client: httpx.Client) -> None:
    def names(place: str) -> list[str]:
        fields = opened.page.locator(f"{place} [data-field]")
        return list(fields.evaluate_all("all => all.map(e => e.dataset.field)"))

    for task in client.get("/v1/tasks").json()["data"]:
        opened.choose_task(task["id"])
        assert names("#parameters") == list(task["parameters"]["properties"])
    alternatives = client.get("/openapi.json").json()["components"]["schemas"]["predict"]["oneOf"]
    common = set.intersection(*(set(schema["properties"]) for schema in alternatives))
    others = {"image", "task", "model", "mask_format", "stream"}
    assert set(names("#option-fields")) == common - others
