"""Takes the picture of docs/label-studio.md: predictions of both models side by side in the real
Label Studio.

python -m tests.support.label_studio_picture
"""

import base64
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.browser import chromium
from tests.support.export_cli import ROOT
from tests.support.label_studio import (
    EMAIL,
    MISSING_LABEL_STUDIO,
    PASSWORD,
    LabelStudio,
    install,
    running_label_studio,
)
from tests.support.label_studio_config import labelled, view
from tests.support.running_service import running_service
from tests.support.scene_images import scene_png

PICTURE = ROOT / "docs/images/label-studio.png"
_SIZE = {"width": 1500, "height": 760}
_SEED = 3
_CONFIG = view(
    labelled("PolygonLabels", "red star", "purple square", "triangle", name="polygon"),
    '<TextArea name="caption" toName="image"/>',
)


def take() -> None:
    """Start both servers, predict a task, and write what a person sees under "Compare All"."""
    assert install(), MISSING_LABEL_STUDIO
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = ROOT / ".bentoml"
        log = folder / "service.log"
        with (
            running_label_studio(folder / "data") as label_studio,
            running_service(home, log) as service,
        ):
            project = label_studio.project("Shapes", _CONFIG)
            project.add_tasks(
                f"data:image/png;base64,{base64.b64encode(scene_png(_SEED, (640, 480))).decode()}"
            )
            connected = project.connect(f"{service.url}/integrations/label-studio", "none")
            assert connected.is_success, connected.text
            project.act("retrieve_tasks_predictions")
            (task,) = project.tasks()
            with chromium() as browser:
                page = browser.new_page(viewport=_SIZE, device_scale_factor=1)  # type: ignore[arg-type]
                _compare(page, label_studio, f"/projects/{project.id}/data?task={task['id']}")
                page.screenshot(path=PICTURE)


def _compare(page: Page, label_studio: LabelStudio, path: str) -> None:
    """Log in and open the task's comparison, scrolled to the predictions."""
    # its pages call home
    page.route(lambda url: not url.startswith(label_studio.url), lambda route: route.abort())
    page.goto(f"{label_studio.url}/user/login/", wait_until="domcontentloaded")
    page.fill("input[name=email]", EMAIL)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    expect(page.locator("input[name=password]")).to_have_count(0)
    page.goto(label_studio.url + path, wait_until="domcontentloaded")
    page.click("button[aria-label='Compare all annotations']", timeout=60_000)
    expect(page.locator("canvas").first).to_be_visible(timeout=60_000)
    page.wait_for_timeout(3000)  # its canvases say by no sign that they are drawn
    for _ in range(2):
        page.mouse.click(_SIZE["width"] - 16, _SIZE["height"] // 2 + 70)
        page.wait_for_timeout(1000)


if __name__ == "__main__":
    take()
