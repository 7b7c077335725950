"""Errors and slow answers, as a person meets them; texts of models and users are shown as text."""

import asyncio
from collections.abc import Callable, Sequence

import httpx
import pytest
import torch
from playwright.sync_api import expect

from tests.service.inference.test_tiled_answers import RIGHT, LookingDecoder, box, picture
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, OD_PROMPT
from tests.support.playground_questions import SAMPLE, api_response
from wire.runner_messages import Outcome, SequenceSpec

FLORENCE, PALIGEMMA = EMBEDDED
KEY = "the-right-key"
MARKUP = (
    "<img src=x onerror=\"document.title='read as"
    " HTML'\"><b>bold</b>&amp;<script>document.title='run'</script>"
)
QUAD = "".join(f"<loc_{place}>" for place in (100, 100, 900, 100, 900, 500, 100, 500))

ServeFakes = Callable[..., Playground]


def test_error_leads_to_its_field(playground: Playground, client: httpx.Client) -> None:
    playground.open(task="captioning", detail="paragraph", sample=SAMPLE)
    error = api_response(client, PALIGEMMA, "captioning", detail="paragraph").json()["error"]
    note = playground.panel(PALIGEMMA).get_by_role("alert")
    expect(note).to_contain_text(error["message"])
    expect(playground.answer_text(FLORENCE)).to_be_visible()
    note.get_by_role("button", name="Change detail").click()
    assert playground.page.evaluate("document.activeElement.value") == "paragraph"
    expect(playground.page.locator("[data-field=detail] .problem")).to_have_text(error["message"])


def test_refused_option_says_so_at_its_field(playground: Playground) -> None:
    page = playground.page
    page.set_viewport_size({"width": 1280, "height": 800})
    playground.open(task="object_detection", nms_iou="3", sample=SAMPLE)
    problem = page.locator("[data-field=nms_iou] .problem")
    expect(problem).to_contain_text("nms_iou is 3")  # the options are open
    playground.panel(FLORENCE).get_by_role("button", name="Change overlap of boxes").click()
    expect(problem).to_be_in_viewport()
    page.get_by_label("Overlap of boxes").fill("0.5")
    expect(problem).to_be_hidden()
    playground.run()
    assert playground.shapes(FLORENCE)
    expect(page.locator("#toolbar")).to_be_in_viewport()
    page.get_by_label("Beams").fill("2")
    page.get_by_label("Temperature").fill("1")
    playground.run()
    expect(page.locator(".problem:visible")).to_contain_text("num_beams=2 with")
    page.get_by_label("Temperature").fill("0")
    playground.run()
    expect(page.locator(".problem:visible")).to_have_count(0)
    page.get_by_label("Seed").press_sequentially("-")
    for task in ("object_detection", "describe-everything"):
        playground.choose_task(task)
        playground.run()
        expect(page.locator("[data-field=seed] .problem")).to_contain_text("seed is 'NaN'")


def test_missing_parameter_is_not_sent(playground: Playground) -> None:
    methods: list[str] = []
    playground.page.on("request", lambda request: methods.append(request.method))
    playground.open()
    playground.choose_task("visual_question_answering")
    question = playground.page.get_by_role("textbox", name="Question")
    question.fill("")
    playground.page.locator("#run").click()
    expect(playground.page.locator("[data-field=question] .problem")).to_be_visible()
    expect(question).to_be_focused()
    assert "POST" not in methods


def test_required_key_is_entered(serve_fakes: ServeFakes) -> None:
    playground = serve_fakes(key=KEY)
    page = playground.page
    playground.begin("ocr")
    for key in ("a wrong one", KEY):
        page.get_by_role("dialog", name="API key").get_by_label("Key", exact=True).fill(key)
        page.get_by_role("button", name="Use it").click()
    playground.wait_for_answers()
    expect(playground.answer_text(FLORENCE)).to_have_text("HELLO")
    assert "Bearer $DIPTYCH_API_KEY" in playground.copied(FLORENCE, "curl")
    assert KEY not in page.content() + page.url
    assert page.evaluate("localStorage.length") == 0


def test_text_precedes_the_answer(serve_fakes: ServeFakes) -> None:
    """A run can be stopped meanwhile, also on a phone."""
    playground = serve_fakes(decoder=FakeDecoder(FLORENCE_ANSWERS, ended=asyncio.Event()))
    playground.page.set_viewport_size({"width": 390, "height": 800})
    playground.begin("ocr")
    expect(playground.panel(FLORENCE).locator(".writing")).to_have_text("HELLO")
    expect(playground.answer_text(PALIGEMMA)).to_be_visible()
    expect(playground.panel(FLORENCE)).to_be_in_viewport()
    expect(playground.page.locator("#run")).to_be_in_viewport()
    stop(playground)
    expect(playground.panel(FLORENCE)).to_contain_text("Stopped.")
    expect(playground.page.locator("#run")).to_have_text("Run")


def stop(playground: Playground) -> None:
    expect(playground.panel(FLORENCE)).to_have_attribute("aria-busy", "true")
    playground.page.get_by_role("button", name="Stop").click()


class Hesitating(LookingDecoder):
    """Never answers about a region or the right tile."""

    async def write(
        self, image_features: torch.Tensor, sequences: Sequence[SequenceSpec]
    ) -> list[Outcome]:
        if int(image_features[0, 0]) == RIGHT or "region" in str(sequences):
            await asyncio.Event().wait()
        return await super().write(image_features, sequences)


def test_boxes_of_a_tile_precede_the_last(serve_fakes: ServeFakes) -> None:
    cat = box("cat", 0, 0, 500, 500)
    playground = serve_fakes(decoder=Hesitating({OD_PROMPT: (cat, cat, "")}))
    page = playground.page
    playground.open()
    playground.choose_file("a.png", picture(), "800 × 400")
    page.locator("#options summary").click()
    page.get_by_text("Grid", exact=True).click()
    page.get_by_label("Rows").fill("1")
    page.get_by_label("Columns").fill("2")
    page.get_by_label("Overlap of tiles").fill("0")
    playground.choose_task("object_detection")
    page.locator("#run").click()
    expect(playground.panel(FLORENCE).locator(".shape")).to_have_count(2)
    whole, tile = playground.shapes(FLORENCE)
    assert whole["points"][2] == pytest.approx([400, 200], abs=1)
    assert tile["points"][2] == pytest.approx([200, 200], abs=1)
    stop(playground)
    expect(playground.panel(FLORENCE)).to_contain_text("Stopped.")


def test_stopped_recipe_keeps_its_answers(serve_fakes: ServeFakes) -> None:
    answers = FLORENCE_ANSWERS | {"Describe in detail what is shown in the image.": "a shape"}
    views = {prompt: (text, text, text) for prompt, text in answers.items()}
    playground = serve_fakes(decoder=Hesitating(views))
    playground.begin("describe-everything")
    panel = playground.panel(FLORENCE)
    facts = panel.locator(".panel-facts")
    expect(facts).to_have_text("2 of 3 answers")
    stop(playground)
    expect(facts).to_have_text("Stopped.")
    expect(panel.locator(".step-answers")).to_contain_text("a shape")
    assert [shape["label"] for shape in playground.shapes(FLORENCE)] == ["red circle"]


def test_unreachable_service_can_be_retried(playground: Playground) -> None:
    playground.open(task="ocr", sample=SAMPLE)
    playground.page.context.set_offline(True)
    playground.run()
    note = playground.panel(FLORENCE).get_by_role("alert")
    expect(note).to_contain_text("The service cannot be reached")
    playground.page.context.set_offline(False)
    note.get_by_role("button", name="Try again").click()
    expect(playground.answer_text(FLORENCE)).to_have_text("MGQL")


def test_markup_of_an_answer_is_text(serve_fakes: ServeFakes) -> None:
    raw_text = MARKUP + QUAD
    prompt = "What is the text in the image, with regions?"
    playground = serve_fakes(decoder=FakeDecoder({prompt: raw_text}))
    playground.open(task="ocr_with_regions", sample=SAMPLE)
    panel = playground.panel(FLORENCE)
    assert panel.locator("button.object").text_content() == MARKUP
    assert panel.locator("pre.raw").text_content() == raw_text
    assert panel.locator("script, b b, .panel-body img, .tags img").count() == 0
    assert playground.page.title() == "Diptych · playground"
