"""Takes the README's screenshot of a report: both embedded models of a running service on 200
scenes with COCO labels.

python -m tests.support.evaluation_picture http://localhost:3000
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from laboratory.evaluation.scenes import rendered, write_coco
from tests.support.browser import chromium
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ROOT

PICTURE = ROOT / "docs/images/evaluation.png"
_NUM_SCENES = 200


def take(url: str) -> None:
    """Run the command on the scenes and write what a person sees of its report."""
    with TemporaryDirectory() as temporary, chromium() as browser:
        scenes = Path(temporary) / "scenes"
        out = Path(temporary) / "out"
        write_coco(scenes, rendered(["plain"], range(_NUM_SCENES)))
        words = ("evaluate", scenes, "--task", "open_vocabulary_detection", "--out", out)
        subprocess.run([DIPTYCH, "--url", url, *words], check=True)
        page = browser.new_page(viewport={"width": 1280, "height": 1216}, color_scheme="light")
        page.goto((out / "report.html").as_uri())
        page.locator(".card").first.wait_for()
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    take(sys.argv[1])
