"""Texts of models and users are shown as text, whatever they look like."""

from urllib.parse import urlencode

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.fake_service import FLORENCE_ID
from tests.support.page_service import page_service

FLORENCE, PALIGEMMA = EMBEDDED
MARKUP = (
    "<img src=x onerror=\"document.title='read as"
    " HTML'\"><b>bold</b>&amp;<script>document.title='run'</script>"
)
READ_TEXT = "What is the text in the image?"
READ_REGIONS = "What is the text in the image, with regions?"
QUAD = "".join(f"<loc_{place}>" for place in (100, 100, 900, 100, 900, 500, 100, 500))


def test_a_label_that_holds_markup_is_shown_as_text(playground: Playground) -> None:
    label = "<b>red triangle</b>"  # paligemma-mini finds the triangle, and gives the label back
    playground.open(task="open_vocabulary_detection", labels=label, sample="mgql")
    expect(playground.page.locator(".chip span")).to_have_text(label)
    panel = playground.panel(PALIGEMMA)
    expect(panel.locator("button.object").first).to_have_text(label)
    expect(panel.locator(".tag-label").first).to_have_text(label)
    assert panel.locator("b b, button b, .tag b").count() == 0


@pytest.mark.parametrize(
    ("task", "prompt", "written"),
    [("ocr", READ_TEXT, MARKUP), ("ocr_with_regions", READ_REGIONS, MARKUP + QUAD)],
)
def test_text_in_a_scene_that_holds_markup_is_shown_as_text(
    context: BrowserContext, task: str, prompt: str, written: str
) -> None:
    with page_service({prompt: written}) as served:
        playground = Playground(context.new_page(), served.url)
        playground.open(task=task, sample="mgql")
        panel = playground.panel(FLORENCE_ID)
        place = ".answer-text" if task == "ocr" else "button.object"
        assert panel.locator(place).text_content() == MARKUP
        assert panel.locator("pre.raw").text_content() == written
        assert panel.locator("script, b b, .panel-body img, .tags img").count() == 0
        assert playground.page.title() == "Diptych · playground"


def test_a_link_that_holds_markup_is_shown_as_text(playground: Playground) -> None:
    playground.page.goto(f"{playground.url}/playground#{urlencode({'task': MARKUP})}")
    note = playground.page.locator("#empty")
    expect(note).to_contain_text(f"No served model supports the task {MARKUP}.")
    assert note.locator("img, b, script").count() == 0
