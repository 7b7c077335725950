"""A run is a link, and the runs of a session are kept."""

import httpx
from playwright.sync_api import BrowserContext, expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import SAMPLE, api_answer
from tests.support.scene_images import scene_png

FLORENCE, PALIGEMMA = EMBEDDED


def test_link_opens_the_same_run(context: BrowserContext, playground: Playground) -> None:
    playground.open()
    playground.choose_task("open_vocabulary_detection")
    for name in ("yellow circle", "blue circle"):
        playground.page.get_by_role("button", name=f"Remove {name}").click()
    labels = playground.page.get_by_role("textbox", name="Labels")
    labels.fill("red & triangle, ü")
    labels.press("Enter")
    playground.run()
    other = Playground(context.new_page(), playground.url)
    other.page.goto(playground.page.url)
    other.wait_for_answers()
    chips = [page.locator(".chip span").all_text_contents() for page in context.pages]
    assert chips[0] == chips[1]
    for model in EMBEDDED:
        assert other.shapes(model) == playground.shapes(model)


def test_runs_of_the_session_are_kept(playground: Playground) -> None:
    """An image of the person is not in the link."""
    playground.open(task="object_detection", sample=SAMPLE)
    page = playground.page
    before = playground.shapes(FLORENCE)
    playground.choose_file("private.png", scene_png(), "320 × 240")
    playground.choose_task("ocr")
    playground.run()
    assert page.url.endswith("#task=ocr&image=own")
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator("#run-bar")).to_contain_text("Copied without its image")
    cards = page.locator("#history .run-card")
    assert cards.count() == 2
    cards.nth(1).click()
    expect(page.locator("#image-name")).to_contain_text("mgql.png")
    assert playground.shapes(FLORENCE) == before
    assert page.url.endswith("#task=object_detection&sample=mgql")


def test_model_table_lists_the_catalog(playground: Playground, client: httpx.Client) -> None:
    playground.open()
    table = playground.page.locator("#model-table")
    models = client.get("/v1/models?catalog=true").json()["data"]
    expect(table.locator("thead th")).to_have_text([model["id"] for model in models])
    commands = [model["serve_command"] for model in models if not model["served"]]
    assert len(commands) == len(models) - len(EMBEDDED) > 10
    expect(table.locator("code")).to_have_text(commands)
    name = "Copy the command that serves florence-2-base"
    table.get_by_role("button", name=name, exact=True).click()
    copied = playground.page.evaluate("navigator.clipboard.readText()")
    assert copied == 'make serve MODELS="florence-2-base"'
    for field in ("organization", "category", "modality", "release_date", "license"):
        row = table.get_by_role("row", name=field.replace("_", " ").capitalize())
        expect(row.locator("td")).to_have_text([model[field] for model in models])
    demos = table.get_by_role("link", name="Demo")
    assert demos.count() == sum(len(model["tasks"]) for model in models if model["served"])
    table.get_by_role("link", name="Demo of Captioning").first.click()
    answer = api_answer(client, FLORENCE, "captioning")
    expect(playground.answer_text(FLORENCE)).to_have_text(answer["result"]["text"])


def test_run_waits_for_a_loading_image(playground: Playground) -> None:
    playground.open()
    playground.choose_task("ocr")
    sample = playground.page.get_by_role("button", name="Sample: ").nth(3)
    sample.evaluate("button => { button.click(); document.getElementById('run').click(); }")
    playground.wait_for_answers()
    assert playground.page.url.endswith("#task=ocr&sample=jb")
    expect(playground.answer_text(FLORENCE)).to_have_text("JB")
