"""Every task, as the page shows what the API answers; how answers are looked at."""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from service.inference.request_fields import PredictFields
from tasks.table import TASKS
from tests.service.inference.test_proofs import core_with, proof
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import SAMPLE, api_answer, api_response, example_fields
from tests.support.scene_images import scene_png

FLORENCE, PALIGEMMA = EMBEDDED
DETECTION = "open_vocabulary_detection"
TOLERANCE_PX = 0.1  # the browser places to 1/64 px of the screen


def objects_of(result: dict[str, Any]) -> list[tuple[str, list[list[float]]]]:
    """Return label and corners of each drawable object of a result."""
    if "instances" in result:
        instances = result["instances"]
        return [(instance["label"], list(chain(*instance["polygons"]))) for instance in instances]
    if "text_regions" in result:
        return [(region["text"], region["quad"]) for region in result["text_regions"]]
    objects = []
    for detection in result["detections"]:
        x1, y1, x2, y2 = detection["box"]
        objects.append((detection["label"], [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]))
    return objects


def example_answer(client: httpx.Client, model: str, task_id: str) -> dict[str, Any]:
    return api_answer(client, model, task_id, **example_fields(TASKS[task_id]))


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
    others = {"task", "model", "mask_format", "stream"}
    assert set(names("#option-fields")) == set(PredictFields.model_fields) - others
    texts = opened.page.locator("#option-fields .field-name").all_text_contents()
    assert [text for text in texts if re.search("Num|Nms|Max|Min", text)] == []
    assert "docs/" not in (opened.page.text_content("main") or "")


def lit_labels(playground: Playground) -> list[list[str | None]]:
    labels = []
    for model in EMBEDDED:
        shapes = playground.panel(model).locator(".shape[data-lit]").all()
        labels.append([shape.get_attribute("data-label") for shape in shapes])
    return labels


def test_labels_are_lit_in_both_panels(playground: Playground) -> None:
    """Each has a colour of its own."""
    playground.open(task=DETECTION, sample=SAMPLE)
    playground.panel(FLORENCE).get_by_role("button", name="red triangle").hover()
    assert lit_labels(playground) == [["red triangle"]] * 2
    playground.page.mouse.move(0, 0)
    assert lit_labels(playground) == [[], []]
    playground.panel(PALIGEMMA).get_by_role("button", name="blue square").focus()
    assert lit_labels(playground) == [["blue square"]] * 2
    colours: dict[str | None, set[str]] = {}
    for shape in playground.page.locator(".shape").all():
        line = shape.locator(".line")
        look = f"{line.get_attribute('stroke')} {line.get_attribute('stroke-dasharray')}"
        colours.setdefault(shape.get_attribute("data-label"), set()).add(look)
    assert len(colours) > 3
    assert all(len(looks) == 1 for looks in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


def test_score_slider_hides_lower_scores(playground: Playground, client: httpx.Client) -> None:
    playground.open(task=DETECTION, sample=SAMPLE)
    detections = {}
    for model in EMBEDDED:
        detections[model] = example_answer(client, model, DETECTION)["result"]["detections"]
    scores = sorted(detection["score"] for detection in chain(*detections.values()))
    minimum = round(scores[len(scores) // 2] + 0.005, 2)
    playground.page.get_by_label("Score at least").fill(str(minimum))
    for model in EMBEDDED:
        expected = [item["label"] for item in detections[model] if item["score"] >= minimum]
        assert [shape["label"] for shape in playground.shapes(model)] == expected
        rows = playground.panel(model).locator(".objects tbody tr:visible")
        assert rows.count() == len(expected)


def test_proved_precision_replaces_the_score(
    serve_fakes: Callable[..., Playground], tmp_path: Path
) -> None:
    playground = serve_fakes(core=core_with(tmp_path, proof(0.9, 0.2), proof(0.975, 0.5)))
    playground.open(task="object_detection", sample=SAMPLE)
    page = playground.page
    expect(page.get_by_label("Score at least")).to_be_hidden()
    slider = page.get_by_label("Proved to be right")
    slider.fill("1")
    assert len(playground.shapes(FLORENCE)) == 1
    text = f"{FLORENCE}: score at least 0.200, 80 images, 95 % confidence"
    expect(page.locator("#proved")).to_have_text(text)
    slider.fill("2")
    assert playground.shapes(FLORENCE) == []
    expect(page.locator("output[for=min-precision]")).to_have_text("97.5 %")


def test_answers_to_another_question_or_image_are_stale(playground: Playground) -> None:
    playground.open(task=DETECTION, sample=SAMPLE)
    page = playground.page
    stale = page.locator("#stale")
    expect(stale).to_be_hidden()
    page.locator("[data-sample=juix]").click()
    expect(stale).to_be_visible()
    expect(page.locator("#panels")).to_have_attribute("data-stale", "")
    page.locator(f"[data-sample={SAMPLE}]").click()
    expect(stale).to_be_hidden()
    playground.choose_task("ocr")
    expect(stale).to_be_visible()
    playground.run()
    expect(stale).to_be_hidden()
    playground.choose_file("own.png", scene_png(), "320 × 240")
    expect(stale).to_be_visible()
    playground.run()
    expect(page.locator("#panels")).not_to_have_attribute("data-stale", "")
    page.locator("#history .run-card").nth(1).click()
    expect(stale).to_be_hidden()
