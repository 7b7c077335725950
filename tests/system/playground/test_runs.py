"""Every way to an image, a run as a link, and every way to take an answer along; no page of the
service needs another host.
"""

import json
import subprocess
import sys
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, FilePayload, expect

from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.settings import Settings
from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import FOLDER, SAMPLE, api_answer
from tests.support.running_service import RunningService
from tests.support.scene_images import encoded, scene_image, scene_png
from tests.system.test_answers import without_varying

FLORENCE, PALIGEMMA = EMBEDDED
# BentoML's routes beside ours: bentoml/_internal/server/base_app.py, _bentoml_impl/server/app.py.
BENTOML_PATHS = ("/livez", "/readyz", "/healthz", "/docs.json", "/static_content/")


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


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_image_is_dropped_or_pasted(opened: Playground, way: str) -> None:
    opened.give(way, scene_png())
    expect(opened.page.locator("#image-name")).to_have_text(f"{way}.png · 320 × 240")


@pytest.mark.parametrize("kind", ["AVIF", "BMP", "GIF"])
def test_file_of_another_format_is_converted(opened: Playground, kind: str) -> None:
    opened.choose_file("a.png", encoded(scene_image(), kind), "320 × 240")
    expect(opened.page.locator("#image-note")).to_contain_text("a.png, 320 × 240, is sent.")
    opened.choose_task("object_detection")
    opened.run()
    assert opened.shapes(FLORENCE)


@pytest.mark.parametrize(
    ("size_wh", "num_more_bytes", "sent"),
    [
        ((9000, 7000), 0, "8017 × 6236"),
        ((30_000, 400), 0, "20000 × 266"),
        ((300, 200), 19_950_000, "300 × 200"),
    ],
)
def test_image_that_is_too_large_is_shrunk(
    opened: Playground, size_wh: tuple[int, int], num_more_bytes: int, sent: str
) -> None:
    data = encoded(Image.new("1", size_wh)) + bytes(num_more_bytes)
    file: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": data}
    opened.page.locator("#file").set_input_files(file)
    expect(opened.page.locator("#image-name")).to_have_text(f"a.jpeg · {sent}")
    expect(opened.page.locator("#image-note")).to_contain_text("is too large: a.jpeg")
    opened.choose_task("captioning")
    opened.run()
    expect(opened.panel(FLORENCE)).to_have_attribute("data-state", "answered")
    with opened.page.expect_download() as download:
        opened.page.get_by_role("link", name="Save it").click()
    assert download.value.path().read_bytes().startswith(b"\xff\xd8")


def test_file_that_is_no_image_is_refused(opened: Playground) -> None:
    file: FilePayload = {"name": "a.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4"}
    opened.page.locator("#file").set_input_files(file)
    expect(opened.page.locator("#image-problem")).to_contain_text("a.pdf is not an image")
    opened.give("drop", scene_png())
    expect(opened.page.locator("#image-problem")).to_be_hidden()


def test_unreadable_file_leaves_no_image_to_ask_about(playground: Playground) -> None:
    playground.open(task="ocr", sample=SAMPLE)
    page = playground.page
    run = page.locator("#run")
    file: FilePayload = {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"}
    page.locator("#file").set_input_files(file)
    problem = page.locator("#image-problem")
    expect(problem).to_be_visible()
    message = problem.text_content()
    expect(page.locator("#preview img")).to_have_count(0)
    expect(page.locator("#panels")).to_have_attribute("data-stale", "")
    expect(page.locator("#stale")).to_be_visible()
    expect(run).to_be_disabled()
    page.locator("#task-ocr").press("Control+Enter")
    expect(problem).to_have_text(message or "")
    assert page.locator("#history .run-card").count() == 1
    page.get_by_role("button", name="Sample: ").first.click()
    expect(run).to_be_enabled()
    expect(problem).to_be_hidden()


def test_panel_names_the_training_of_a_model(playground: Playground) -> None:
    playground.open(task="captioning", sample=SAMPLE)
    for model, command in ((FLORENCE, "florence-2-base"), (PALIGEMMA, "paligemma-3b")):
        line = playground.panel(model).locator(".training")
        expect(line).to_contain_text("Trained on drawn scenes only.")
        expect(line).to_contain_text(f'make serve MODELS="{command}')


def test_photo_is_taken_with_the_camera(opened: Playground) -> None:
    opened.page.get_by_role("button", name="Camera").click()
    opened.page.get_by_role("button", name="Take the photo").click()
    expect(opened.page.locator("#image-name")).to_contain_text("photo.jpg")
    opened.choose_task("captioning")
    opened.run()
    expect(opened.panel(FLORENCE)).to_have_attribute("data-state", "answered")


def test_turned_photo_is_upright_with_its_shapes(opened: Playground) -> None:
    upright = scene_image(size_wh=(320, 240))
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned: shown turned by 90 degrees clockwise
    turned = encoded(upright.rotate(90, expand=True), exif=exif)
    opened.choose_task("object_detection")
    shapes = []
    for name, data in (("upright.png", encoded(upright)), ("turned.png", turned)):
        opened.choose_file(name, data, "320 × 240")
        opened.run()
        shapes.append(opened.shapes(FLORENCE))
    assert shapes[0] == shapes[1] != []


def test_copied_requests_give_the_answer_of_the_panel(playground: Playground) -> None:
    question = "@is \"it\" a\\nice $HOME 'star'?"
    playground.open(task="visual_question_answering", question=question, sample="mgql")
    expected: Any = without_varying(playground.answer(PALIGEMMA))
    for language, program in {"curl": ["bash"], "Python": [sys.executable]}.items():
        command = [*program, "-c", playground.copied(PALIGEMMA, language)]
        run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
        assert without_varying(json.loads(run.stdout)) == expected


def test_no_page_needs_another_host(context: BrowserContext, service: RunningService) -> None:
    page = context.new_page()
    pages = []
    templates: list[str] = [route.path for route in rest_app(RestBoundary(Settings())).routes]  # type: ignore[attr-defined]
    paths = [path.replace("{file:path}", "").replace("{path:path}", "none") for path in templates]
    for path in (*sorted(paths), *BENTOML_PATHS):
        response = page.request.get(service.url + path)
        if response.headers.get("content-type", "").startswith("text/html"):
            pages.append(path)
            # the context's witness fails on any other host
            page.goto(service.url + path, wait_until="networkidle")
    assert pages == ["/", "/docs", "/playground", "/playground/"]
    page.goto(service.url + "/")
    assert page.url == f"{service.url}/playground"
