"""Every way to an image, and every way to take an answer along."""

import json
import subprocess
import sys
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.browser import Playground
from tests.support.export_cli import EMBEDDED
from tests.support.playground_questions import FOLDER
from tests.support.scene_images import encoded, scene_image, scene_png
from tests.system.test_answers import without_varying

FLORENCE, PALIGEMMA = EMBEDDED


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_image_is_dropped_or_pasted(opened: Playground, way: str) -> None:
    opened.give(way, scene_png())
    expect(opened.page.locator("#image-name")).to_have_text(f"{way}.png · 320 × 240")


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
