"""A run is a link, and the runs of a session are kept."""

import httpx
from playwright.sync_api import BrowserContext, expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import SAMPLE, api_answer
from tests.support.scene_images import scene_png

FLORENCE, PALIGEMMA = EMBEDDED


def test_a_link_opens_the_same_run(context: BrowserContext, playground: Playground) -> None:
    playground.open()
    playground.choose_task("open_vocabulary_detection")
    for name in ("yellow circle", "blue circle"):
        playground.page.get_by_role("button", name=f"Remove {name}").click()
    chips = playground.page.get_by_role("textbox", name="Labels")
    chips.fill("red & triangle, ü")
    chips.press("Enter")
    playground.run()
    other = Playground(context.new_page(), playground.url)
    other.page.goto(playground.page.url)
    other.wait_for_answers()
    assert (
        other.page.locator(".chip span").all_text_contents()
        == playground.page.locator(".chip span").all_text_contents()
    )
    for model in EMBEDDED:
        assert other.shapes(model) == playground.shapes(model)


def test_an_image_of_the_person_is_not_in_the_link(playground: Playground) -> None:
    playground.open()
    files = [{"name": "private.png", "mimeType": "image/png", "buffer": scene_png()}]
    # a dict is a FilePayload
    playground.page.locator("#file").set_input_files(files)  # type: ignore[arg-type]
    expect(playground.page.locator("#image-name")).to_contain_text("private.png · 320 × 240")
    playground.choose_task("ocr")
    playground.run()
    assert playground.page.url.endswith("#task=ocr&image=own")
    playground.page.get_by_role("button", name="Copy link").click()
    expect(playground.page.locator("#run-bar")).to_contain_text("Copied without its image")


def test_a_run_of_the_session_is_shown_again_as_it_was_answered(playground: Playground) -> None:
    playground.open(task="object_detection", sample=SAMPLE)
    before = playground.shapes(FLORENCE)
    playground.page.get_by_role("button", name="Sample: ").nth(1).click()
    playground.choose_task("captioning")
    playground.run()
    cards = playground.page.locator("#history .run-card")
    assert cards.count() == 2
    cards.nth(1).click()
    expect(playground.page.locator("#image-name")).to_contain_text("mgql.png")
    assert playground.shapes(FLORENCE) == before
    assert playground.page.url.endswith("#task=object_detection&sample=mgql")


def test_the_model_table_shows_what_the_service_lists_and_runs_demos(
    playground: Playground, client: httpx.Client
) -> None:
    playground.open()
    table = playground.page.locator("#model-table")
    models = client.get("/v1/models?catalog=true").json()["data"]
    expect(table.locator("thead th")).to_have_text([model["id"] for model in models])
    commands = [model["serve_command"] for model in models if not model["served"]]
    assert len(commands) == len(models) - len(EMBEDDED) > 10
    expect(table.locator("code")).to_have_text(commands)
    table.get_by_role(
        "button", name="Copy the command that serves florence-2-base", exact=True
    ).click()
    assert (
        playground.page.evaluate("navigator.clipboard.readText()")
        == 'make serve MODELS="florence-2-base"'
    )
    for name in ("organization", "category", "modality", "release_date", "license"):
        row = table.get_by_role("row", name=name.replace("_", " ").capitalize())
        expect(row.locator("td")).to_have_text([model[name] for model in models])
    demos = table.get_by_role("link", name="Demo")
    assert demos.count() == sum(len(model["tasks"]) for model in models if model["served"])
    table.get_by_role("link", name="Demo of Captioning").first.click()
    answer = api_answer(client, FLORENCE, "captioning")
    expect(playground.panel(FLORENCE).locator(".answer-text")).to_have_text(
        answer["result"]["text"]
    )


def test_an_image_that_is_still_loading_is_the_one_that_is_asked_about(
    playground: Playground,
) -> None:
    playground.open()
    playground.choose_task("ocr")
    sample = playground.page.get_by_role("button", name="Sample: ").nth(3)
    sample.evaluate("button => { button.click(); document.getElementById('run').click(); }")
    playground.wait_for_answers()
    assert playground.page.url.endswith("#task=ocr&sample=jb")
    expect(playground.panel(FLORENCE).locator(".answer-text")).to_have_text("JB")
