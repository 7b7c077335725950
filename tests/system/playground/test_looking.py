"""How answers are looked at: highlights, scores, filters, and what differs."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import httpx
from playwright.sync_api import expect

from tests.service.inference.test_proofs import core_with, proof
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import SAMPLE, example_answer

FLORENCE, PALIGEMMA = EMBEDDED
DETECTION = "open_vocabulary_detection"


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


def test_answers_to_another_question_are_dimmed(playground: Playground) -> None:
    playground.open(task=DETECTION, sample=SAMPLE)
    panels = playground.page.locator("#panels")
    expect(panels).not_to_have_attribute("data-stale", "")
    playground.page.locator("[data-sample=juix]").click()
    expect(panels).to_have_attribute("data-stale", "")
    expect(playground.page.locator("#stale")).to_be_visible()
    playground.page.locator(f"[data-sample={SAMPLE}]").click()
    expect(panels).not_to_have_attribute("data-stale", "")
    playground.choose_task("ocr")
    expect(panels).to_have_attribute("data-stale", "")
    playground.run()
    expect(panels).not_to_have_attribute("data-stale", "")
