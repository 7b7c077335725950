"""Every way to an image, and every way to take an answer along."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import FOLDER
from tests.support.scene_images import encoded, scene_image, scene_png

FLORENCE, PALIGEMMA = EMBEDDED
VARYING = {"id", "timings_ms", "vision_cache"}


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted_anywhere(playground: Playground, way: str) -> None:
    playground.open()
    playground.give(way, scene_png())
    expect(playground.page.locator("#image-name")).to_have_text(f"{way}.png · 320 × 240")


def test_a_photo_is_taken_with_the_camera(playground: Playground) -> None:
    playground.open()
    playground.page.get_by_role("button", name="Camera").click()
    playground.page.get_by_role("button", name="Take the photo").click()
    expect(playground.page.locator("#image-name")).to_contain_text("photo.jpg")
    playground.choose_task("captioning")
    playground.run()
    expect(playground.panel(FLORENCE)).to_have_attribute("data-state", "answered")


def test_a_turned_photo_is_shown_upright_with_its_shapes_in_place(playground: Playground) -> None:
    upright = scene_image(size_wh=(320, 240))
    exif = upright.getexif()
    exif[0x0112] = 6  # the camera was turned: shown turned by 90 degrees clockwise
    turned = encoded(upright.rotate(90, expand=True), exif=exif)
    playground.open()
    playground.choose_task("object_detection")
    shown = []
    for name, data in (("upright.png", encoded(upright)), ("turned.png", turned)):
        files = [{"name": name, "mimeType": "image/png", "buffer": data}]
        # a dict is a FilePayload
        playground.page.locator("#file").set_input_files(files)  # type: ignore[arg-type]
        expect(playground.page.locator("#image-name")).to_have_text(f"{name} · 320 × 240")
        playground.run()
        shown.append(playground.shapes(FLORENCE))
    assert shown[0]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("language", ["curl", "Python"])
def test_a_copied_request_gives_the_answer_of_the_panel(
    playground: Playground, language: str
) -> None:
    playground.open(
        task="visual_question_answering", question="@is \"it\" a\\nice $HOME 'star'?", sample="mgql"
    )
    code = playground.copied(PALIGEMMA, language)
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    answer = playground.answer(PALIGEMMA)
    assert without_varying(json.loads(output(command, FOLDER))) == without_varying(answer)


def output(command: list[str], folder: Path) -> str:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def without_varying(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in VARYING}
