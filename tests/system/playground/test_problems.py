"""Errors, as a person meets them: what was wrong, and what to change."""

import asyncio
from collections.abc import Sequence

import httpx
import pytest
import torch
from playwright.sync_api import BrowserContext, FilePayload, expect

from tests.service.inference.test_tiled_answers import RIGHT, LookingDecoder, box, picture
from tests.support.browser import Playground
from tests.support.core_calls import OD_PROMPT
from tests.support.export_cli import EMBEDDED
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID
from tests.support.page_service import page_service
from tests.support.playground_questions import SAMPLE, api_response
from wire.runner_messages import Outcome, SequenceSpec

FLORENCE, PALIGEMMA = EMBEDDED
KEY = "the-right-key"


def test_an_error_shows_its_message_and_leads_to_the_field(
    playground: Playground, client: httpx.Client
) -> None:
    playground.open(task="captioning", detail="paragraph", sample=SAMPLE)
    error = api_response(client, PALIGEMMA, "captioning", detail="paragraph").json()["error"]
    note = playground.panel(PALIGEMMA).get_by_role("alert")
    expect(note).to_contain_text(error["message"])
    expect(playground.panel(FLORENCE).locator(".answer-text")).to_be_visible()
    note.get_by_role("button", name="Change detail").click()
    assert playground.page.evaluate("document.activeElement.value") == "paragraph"


def test_a_missing_parameter_is_said_before_anything_is_sent(playground: Playground) -> None:
    requests: list[str] = []
    playground.page.on("request", lambda request: requests.append(request.method))
    playground.open()
    playground.choose_task("visual_question_answering")
    question = playground.page.get_by_role("textbox", name="Question")
    question.fill("")
    playground.page.locator("#run").click()
    expect(playground.page.locator("[data-field=question] .problem")).to_be_visible()
    expect(question).to_be_focused()
    assert "POST" not in requests


def test_a_service_that_wants_a_key_is_given_one(context: BrowserContext) -> None:
    with page_service(key=KEY) as served:
        playground = Playground(context.new_page(), served.url)
        page = playground.page
        page.goto(f"{served.url}/playground#task=ocr&sample={SAMPLE}")
        for key in ("a wrong one", KEY):
            page.get_by_role("dialog", name="API key").get_by_label("Key", exact=True).fill(key)
            page.get_by_role("button", name="Use it").click()
        playground.wait_for_answers()
        expect(playground.panel(FLORENCE_ID).locator(".answer-text")).to_have_text("HELLO")
        assert "Bearer $DIPTYCH_API_KEY" in playground.copied(FLORENCE_ID, "curl")
        assert KEY not in page.content() + page.url
        assert page.evaluate("localStorage.length") == 0


def test_text_is_there_before_the_answer_ends_and_a_run_can_be_stopped(
    context: BrowserContext,
) -> None:
    never = FakeDecoder(FLORENCE_ANSWERS, ended=asyncio.Event())
    with page_service(decoder=never) as served:
        playground = Playground(context.new_page(), served.url)
        playground.page.goto(f"{served.url}/playground#task=ocr&sample={SAMPLE}")
        panel = playground.panel(FLORENCE_ID)
        expect(panel.locator(".writing")).to_have_text("HELLO")
        expect(playground.panel(PALIGEMMA).locator(".answer-text")).to_be_visible()
        expect(panel).to_have_attribute("aria-busy", "true")
        playground.page.get_by_role("button", name="Stop").click()
        expect(panel).to_contain_text("Stopped.")
        expect(playground.page.locator("#run")).to_have_text("Run")


class NeverSeeingTheRight(LookingDecoder):
    """Answers about the whole image and its left tile."""

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        if int(image_features[0, 0]) == RIGHT:
            await asyncio.Event().wait()
        return await super().write(image_features, sequences)


def test_boxes_of_a_tile_are_there_before_those_of_the_last(context: BrowserContext) -> None:
    cat = box("cat", 0, 0, 500, 500)
    decoder = NeverSeeingTheRight({OD_PROMPT: (cat, cat, "")})
    with page_service(decoder=decoder) as served:
        playground = Playground(context.new_page(), served.url)
        playground.open()
        file: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": picture()}
        playground.page.locator("#file").set_input_files(file)
        expect(playground.page.locator("#image-name")).to_contain_text("800 × 400")
        playground.page.locator("#options summary").click()
        playground.page.get_by_label("Tiles").fill("1x2")
        playground.page.get_by_label("Overlap").fill("0")
        playground.choose_task("object_detection")
        playground.page.locator("#run").click()
        panel = playground.panel(FLORENCE_ID)
        expect(panel.locator(".shape")).to_have_count(2)
        expect(panel).to_have_attribute("aria-busy", "true")
        whole, tile = playground.shapes(FLORENCE_ID)
        assert whole["points"][2] == pytest.approx([400, 200], abs=1)
        assert tile["points"][2] == pytest.approx([200, 200], abs=1)
        playground.page.get_by_role("button", name="Stop").click()
        expect(panel).to_contain_text("Stopped.")


class NeverDescribing(FakeDecoder):
    """Answers all but questions about a region, whose calls end when they are cancelled."""

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        if "region" in str(sequences):
            await asyncio.Event().wait()
        return await super().write(image_features, sequences)


def test_answers_of_a_recipe_are_there_before_its_last_and_stay_when_it_is_stopped(
    context: BrowserContext,
) -> None:
    detailed = {"Describe in detail what is shown in the image.": "a shape"}
    decoder = NeverDescribing(FLORENCE_ANSWERS | detailed)
    with page_service(decoder=decoder) as served:
        playground = Playground(context.new_page(), served.url)
        playground.page.goto(f"{served.url}/playground#task=describe-everything&sample={SAMPLE}")
        panel = playground.panel(FLORENCE_ID)
        expect(panel.locator(".panel-facts")).to_have_text("2 of 3 answers")
        expect(panel).to_have_attribute("aria-busy", "true")
        playground.page.get_by_role("button", name="Stop").click()
        expect(panel.locator(".panel-facts")).to_have_text("Stopped.")
        expect(panel.locator(".step-answers")).to_contain_text("a shape")
        assert [shape["label"] for shape in playground.shapes(FLORENCE_ID)] == ["red circle"]


def test_a_service_that_is_gone_is_said_and_can_be_asked_again(playground: Playground) -> None:
    playground.open(task="ocr", sample=SAMPLE)
    playground.page.context.set_offline(True)
    playground.run()
    note = playground.panel(FLORENCE).get_by_role("alert")
    expect(note).to_contain_text("The service cannot be reached")
    playground.page.context.set_offline(False)
    note.get_by_role("button", name="Try again").click()
    expect(playground.panel(FLORENCE).locator(".answer-text")).to_have_text("MGQL")
