"""Takes the screenshots of the page in the docs, a comparison and an analysis, of a running
service.

python -m tests.support.playground_picture http://localhost:3000
"""

import sys

from playwright.sync_api import expect

from tests.support.browser import Playground, chromium
from tests.support.export_cli import ROOT

FOLDER = ROOT / "docs/images"
PICTURE = FOLDER / "playground.png"
_SAMPLE = "juix"  # the models find different objects in it
_PIXELS_PER_PX = 1.5


def take(url: str) -> None:
    """Open the page, let the models answer, and write what a person sees."""
    with chromium() as browser:
        page = browser.new_page(
            viewport={"width": 1360, "height": 960},
            device_scale_factor=_PIXELS_PER_PX,
            color_scheme="light",
        )
        playground = Playground(page, url)
        playground.open(task="open_vocabulary_detection", sample=_SAMPLE)
        expect(page.locator(".shape").first).to_be_visible()
        page.screenshot(path=PICTURE)
        playground.open(task="describe-everything", sample=_SAMPLE)
        for thing in page.locator("button.object").all()[:2]:
            thing.press("Enter")
        page.screenshot(path=FOLDER / "analyze.png")


if __name__ == "__main__":
    take(sys.argv[1])
