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
    {"task": "open_vocabulary_detection", "sample": SAMPLE},
    {"task": "region_description", "temperature": "2", "seed": "1", "sample": SAMPLE},
    {"task": "describe-everything", "sample": SAMPLE},
]


def serious(page: Page) -> list[str]:
    """Return what axe finds that it calls serious or critical."""
    found: list[str] = []
    for each in Axe().run(page).response["violations"]:
        if each["impact"] in ("serious", "critical"):
            for node in each["nodes"]:
                found.append(f"{each['id']}: {node['html'][:200]} {node['failureSummary']}")
    return found


@pytest.mark.parametrize(
    "link",
    [
        LINKS[0],
        pytest.param(LINKS[1], marks=pytest.mark.long),
        pytest.param(LINKS[2], marks=pytest.mark.long),
        LINKS[3],
    ],
    ids=str,
)
def test_axe_finds_nothing_serious(playground: Playground, link: dict[str, str]) -> None:
    playground.open(**link)
    playground.page.locator("#options").evaluate("e => { e.open = true }")
    for theme, width in THEMES.items():
        playground.page.set_viewport_size({"width": width, "height": 900})
        playground.page.emulate_media(color_scheme=theme)
        assert not serious(playground.page), theme


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


def test_the_page_works_with_keys_only(playground: Playground) -> None:
    playground.open()
    keys = playground.page.keyboard
    tab_to(playground.page, "task-captioning")
    keys.press("ArrowRight")
    expect(playground.page.locator("#task-open_vocabulary_detection")).to_be_focused()
    for name in playground.page.locator(".chip span").all_text_contents():
        tab_to(playground.page, f"Remove {name}")
        keys.press("Enter")
    keys.type("red triangle")
    keys.press("Enter")
    keys.type("blue square")
    keys.press("Control+Enter")
    playground.wait_for_answers()
    assert [shape["label"] for shape in playground.shapes(FLORENCE)] == [
        "red triangle",
        "blue square",
    ]
    tab_to(playground.page, "red triangle")
    for model in EMBEDDED:
        expect(playground.panel(model).locator(".shape[data-lit]")).to_have_attribute(
            "data-label", "red triangle"
        )


def tab_to(page: Page, name: str) -> None:
    """Press Tab until the element of this id, accessible name or text has the focus.

    It must be seen to have it.
    """
    focused = (
        "(({id, ariaLabel, textContent}) => [id, ariaLabel, textContent])(document.activeElement)"
    )
    for _ in range(100):
        if name in page.evaluate(focused):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab never came to {name}")


def test_what_an_answer_says_is_told_to_a_screen_reader(playground: Playground) -> None:
    playground.open(task="object_detection", sample=SAMPLE)
    expect(playground.page.locator("#announcement[role=status]")).to_contain_text(
        f"{FLORENCE}: 4 objects, in"
    )
