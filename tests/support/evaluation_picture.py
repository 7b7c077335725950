"""Takes the README's screenshot of a report: both embedded models of a running service on 200 scenes with COCO labels.

python -m tests.support.evaluation_picture http://localhost:3000
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from export.evaluation import evaluation_scene
from export.scenes import render_scene
from export.scenes.geometry import box_xyxy
from export.scenes.scene import CANVAS_PX, SHAPES
from tests.support.browser import chromium
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ROOT

PICTURE = ROOT / "docs/images/evaluation.png"
_NUM_SCENES, _SIDE_PX = 200, 384


def write_scenes(folder: Path) -> None:
    """Render scenes that were not used in training, with the boxes of their shapes as COCO."""
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    (folder / "images").mkdir(parents=True)
    for index in range(_NUM_SCENES):
        scene, name = evaluation_scene(index), f"{index:03}.png"
        render_scene(scene, _SIDE_PX).save(folder / "images" / name)
        images.append({"id": index, "file_name": name, "width": _SIDE_PX, "height": _SIDE_PX})
        for drawn in scene.objects:
            x1, y1, x2, y2 = (value * _SIDE_PX / CANVAS_PX for value in box_xyxy(drawn))
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
            ids = {"id": len(annotations), "image_id": index, "category_id": SHAPES.index(drawn.shape)}
            annotations.append({**ids, **box})
    categories = [{"id": index, "name": name} for index, name in enumerate(SHAPES)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document))


def take(url: str) -> None:
    """Run the command on the scenes and write what a person sees of its report."""
    with TemporaryDirectory() as temporary, chromium() as browser:
        scenes, out = Path(temporary) / "scenes", Path(temporary) / "out"
        write_scenes(scenes)
        words = ("evaluate", scenes, "--task", "open_vocabulary_detection", "--out", out)
        subprocess.run([DIPTYCH, "--url", url, *words], check=True)
        page = browser.new_page(viewport={"width": 1280, "height": 1380}, color_scheme="light")
        page.goto((out / "report.html").as_uri())
        page.locator(".card").first.wait_for()
        page.screenshot(path=PICTURE)


if __name__ == "__main__":
    take(sys.argv[1])
