"""How answers are looked at: highlights, scores, filters, and what differs."""

from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import BrowserContext, expect

from tests.service.inference.test_proofs import core_with, proof
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.page_service import page_service
from tests.support.playground_questions import SAMPLE, example_answer

FLORENCE, PALIGEMMA = EMBEDDED
DETECTION = "open_vocabulary_detection"


@pytest.fixture
def detected(playground: Playground, client: httpx.Client) -> dict[str, list[dict[str, Any]]]:
    """Both models' detections of the sample, shown on the page."""
    playground.open(task=DETECTION, sample=SAMPLE)
    found = {
        model: example_answer(client, model, DETECTION)["result"]["detections"]
        for model in EMBEDDED
    }
    assert all(len(each) > 2 for each in found.values())
    return found


def lit(playground: Playground, model: str) -> list[str | None]:
    shapes = playground.panel(model).locator(".shape[data-lit]")
    return [shapes.nth(index).get_attribute("data-label") for index in range(shapes.count())]


@pytest.mark.usefixtures("detected")
def test_a_row_that_is_pointed_at_or_focused_lights_its_label_in_both_panels(
    playground: Playground,
) -> None:
    row = playground.panel(FLORENCE).get_by_role("button", name="red triangle")
    row.hover()
    assert [lit(playground, model) for model in EMBEDDED] == [["red triangle"]] * 2
    playground.page.mouse.move(0, 0)
    assert [lit(playground, model) for model in EMBEDDED] == [[], []]
    playground.panel(PALIGEMMA).get_by_role("button", name="blue square").focus()
    assert [lit(playground, model) for model in EMBEDDED] == [["blue square"]] * 2


@pytest.mark.usefixtures("detected")
def test_a_label_has_one_colour_and_no_two_have_the_same(playground: Playground) -> None:
    colours: dict[str, set[str]] = {}
    for shape in playground.page.locator(".shape").all():
        line = shape.locator(".line")
        look = f"{line.get_attribute('stroke')} {line.get_attribute('stroke-dasharray')}"
        colours.setdefault(shape.get_attribute("data-label") or "", set()).add(look)
    assert len(colours) > 3
    assert all(len(looks) == 1 for looks in colours.values())
    assert len(set.union(*colours.values())) == len(colours)


def test_the_score_slider_hides_what_is_below_it(
    playground: Playground, detected: dict[str, list[dict[str, Any]]]
) -> None:
    scores = sorted(each["score"] for each in chain.from_iterable(detected.values()))
    least = round(scores[len(scores) // 2] + 0.005, 2)
    playground.page.get_by_label("Score at least").fill(str(least))
    for model, found in detected.items():
        expected = [each["label"] for each in found if each["score"] >= least]
        assert [shape["label"] for shape in playground.shapes(model)] == expected
        assert playground.panel(model).locator(".objects tbody tr:visible").count() == len(expected)


def test_a_proved_precision_takes_the_place_of_the_score(
    context: BrowserContext, tmp_path: Path
) -> None:
    core = core_with(tmp_path, proof(0.9, 0.2), proof(0.975, 0.5))
    with page_service(core=core) as served:
        playground = Playground(context.new_page(), served.url)
        playground.open(task="object_detection", sample=SAMPLE)
        page = playground.page
        expect(page.get_by_label("Score at least")).to_be_hidden()
        slider = page.get_by_label("Proved to be right")
        slider.fill("1")
        assert len(playground.shapes(FLORENCE)) == 1
        expect(page.locator("#proved")).to_have_text(
            f"{FLORENCE}: score at least 0.200, 80 images, 95 % confidence"
        )
        slider.fill("2")
        assert playground.shapes(FLORENCE) == []
        expect(page.locator("output[for=min-precision]")).to_have_text("97.5 %")


@pytest.mark.usefixtures("detected")
def test_answers_are_dimmed_while_the_form_asks_another_question(playground: Playground) -> None:
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


def test_text_appears_as_it_is_written(playground: Playground) -> None:
    playground.page.add_init_script("""
        window.seen = [];
        const note = () => {
          const text = document.querySelector("[data-model=florence-2-mini] .writing")?.textContent;
          if (text) seen.push(text);
        };
        new MutationObserver(note).observe(document, { childList: true, subtree: true });
    """)
    playground.open(task="captioning", detail="detailed", sample=SAMPLE)
    seen = playground.page.evaluate("seen")
    full = playground.panel(FLORENCE).locator(".answer-text").inner_text()
    written = [text for text in seen if full.startswith(text)]
    assert len(set(written)) > 3
    assert written == sorted(written, key=len)
