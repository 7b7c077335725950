"""Takes the screenshots of the page in the docs: a comparison, an analysis, and a large image
without and with tiles, of a running service.

python -m tests.support.playground_picture http://localhost:3000
"""

import io
import sys

from PIL import Image
from playwright.sync_api import FilePayload, expect

from laboratory.tile_cost import sparse_scenes
from tests.support.browser import Playground, chromium
from tests.support.export_cli import EMBEDDED, ROOT

FOLDER = ROOT / "docs/images"
PICTURE = FOLDER / "playground.png"
TILES = FOLDER / "tiles.jpg"
_SAMPLE = "juix"  # the models find different objects in it
_PIXELS_PER_PX = 1.5
_GAP_PX = 12
_TIMEOUT_MS = 300_000  # a loaded machine takes a minute for a large image


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
        take_tiles(playground)


def take_tiles(playground: Playground) -> None:
    """Write the answers about a large image without and with tiles, side by side."""
    (scene,) = sparse_scenes(1)
    page = playground.page
    expect.set_options(timeout=_TIMEOUT_MS)
    playground.open()
    file: FilePayload = {"name": "large.jpg", "mimeType": "image/jpeg", "buffer": scene.data}
    page.locator("#file").set_input_files(file)
    expect(page.locator("#image-name")).to_contain_text("large.jpg")
    playground.choose_task("object_detection")
    page.locator("#options summary").click()
    shown: list[Image.Image] = []
    for tiles in ("off", "auto"):
        page.get_by_label("Tiles").fill(tiles)
        playground.run()
        picture = playground.panel(EMBEDDED[0]).locator(".picture")
        shown.append(Image.open(io.BytesIO(picture.screenshot())))
    width, height = shown[0].size
    both = Image.new("RGB", (2 * width + _GAP_PX, height), "white")
    both.paste(shown[0], (0, 0))
    both.paste(shown[1], (width + _GAP_PX, 0))
    both.save(TILES, quality=85)


if __name__ == "__main__":
    take(sys.argv[1])
