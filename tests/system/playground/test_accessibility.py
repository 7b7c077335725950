"""For everyone: with keys only, on a phone, light and dark, and with nothing that axe finds
serious.
"""

from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import SAMPLE

FLORENCE, PALIGEMMA = EMBEDDED
THEMES: dict[Literal["light", "dark"], int] = {"light": 1440, "dark": 390}
WIDTHS = (1024, 390, 320)
LINKS: list[dict[str, str]] = [
    {},
    {"task": "describe-everything", "sample": SAMPLE},
    {"task": "open_vocabulary_detection", "sample": SAMPLE},
    {"task": "region_description", "temperature": "2", "seed": "1", "sample": SAMPLE},
]
# The id, name and text of the element with the focus.
FOCUSED = "(({id, ariaLabel, textContent}) => [id, ariaLabel, textContent])(document.activeElement)"


def serious_violations(page: Page) -> list[str]:
    violations = []
    for rule in Axe().run(page).response["violations"]:
        if rule["impact"] in ("serious", "critical"):
            for node in rule["nodes"]:
                html = node["html"][:200]
                violations.append(f"{rule['id']}: {html} {node['failureSummary']}")
    return violations


def test_axe_finds_nothing_serious(playground: Playground) -> None:
    for link in LINKS[:2]:
        playground.open(**link)
        playground.page.locator("#options").evaluate("e => { e.open = true }")
        for theme, width in THEMES.items():
            playground.page.set_viewport_size({"width": width, "height": 900})
            playground.page.emulate_media(color_scheme=theme)
            assert not serious_violations(playground.page), (link, theme)


def test_nothing_is_wider_than_the_page(playground: Playground) -> None:
    long = "a very long label " * 8 + "averylonglabelwithoutanyspace" * 4
    for link in [*LINKS, {"task": "open_vocabulary_detection", "labels": long, "sample": SAMPLE}]:
        playground.open(**link)
        wait_until_it_fits(playground.page)
    for _ in range(4):  # enough to make the session's runs wider
        playground.run()
    wait_until_it_fits(playground.page)


def wait_until_it_fits(page: Page) -> None:
    """Return when the page fits each width: labels move in the next frame."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("width => document.documentElement.scrollWidth <= width", arg=width)


def test_page_works_with_keys_only(playground: Playground) -> None:
    """And tells a screen reader what was answered."""
    playground.open()
    page = playground.page
    tab_to(page, "task-captioning")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#task-open_vocabulary_detection")).to_be_focused()
    for name in page.locator(".chip span").all_text_contents():
        tab_to(page, f"Remove {name}")
        page.keyboard.press("Enter")
    page.keyboard.type("red triangle")
    page.keyboard.press("Enter")
    page.keyboard.type("blue square")
    page.keyboard.press("Control+Enter")
    playground.wait_for_answers()
    labels = [shape["label"] for shape in playground.shapes(FLORENCE)]
    assert labels == ["red triangle", "blue square"]
    announcement = page.locator("#announcement[role=status]")
    expect(announcement).to_contain_text("-mini: 2 objects, in")  # of the last answer
    tab_to(page, "red triangle")
    for model in EMBEDDED:
        lit = playground.panel(model).locator(".shape[data-lit]")
        expect(lit).to_have_attribute("data-label", "red triangle")


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this id, accessible name or text has the focus."""
    for _ in range(100):
        if name in page.evaluate(FOCUSED):
            return
        page.keyboard.press("Tab")
    pytest.fail(f"Tab never came to {name}")
