"""Takes the screenshot of the page after a collage of things is pasted into it: the answers of a
running service that serves both models of things.

python -m tests.support.collage_picture http://localhost:3000 build/things
"""

import sys
from pathlib import Path

from playwright.sync_api import expect

from laboratory.evaluation.conditions import png_image
from laboratory.things import Material
from laboratory.things.accuracy import FIRST_SEED
from laboratory.things.screenshots import take_screenshots
from tests.support.browser import Playground, chromium
from tests.support.export_cli import ROOT

PICTURE = ROOT / "docs/images/collage.png"
_SEED = FIRST_SEED + 2  # six things
_LABELS = ("helicopter", "palm", "snail", "sailing boat", "guitar", "violin")  # but no violin


def take(url: str, material: Material) -> None:
    """Paste what Chromium shows of some emoji, let the models answer, and write the page."""
    (collage,) = take_screenshots(material, _SEED, 1)
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1360, "height": 960}, color_scheme="light")
        playground = Playground(page, url)
        playground.open()
        playground.give("paste", png_image(collage.image).data)
        playground.choose_task("open_vocabulary_detection")
        remove = page.get_by_role("button", name="Remove ")
        while remove.count():
            remove.first.click()
        chips = page.get_by_role("textbox", name="Labels")
        for label in _LABELS:
            chips.fill(label)
            chips.press("Enter")
        playground.run()
        expect(page.locator(".shape").first).to_be_visible()
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    take(sys.argv[1], Material(Path(sys.argv[2])))
