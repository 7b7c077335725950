"""The real FiftyOne: our zoo source is registered, and its model labels samples with the running
service.

Without its database, whose server no package brings: samples of no dataset.
"""

import functools
import json
import os
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png
from tests.support.tool_environments import tool_python

pytestmark = pytest.mark.long

LABEL = """
import json, sys
from pathlib import Path
import fiftyone as fo
import fiftyone.zoo as foz
import numpy as np
from PIL import Image
source, url, folder = sys.argv[1:]
foz.register_zoo_model_source(source)
samples = [fo.Sample(filepath=str(path)) for path in sorted(Path(folder).iterdir())]
images = [np.asarray(Image.open(sample.filepath)) for sample in samples]
florence = {"model": "florence-2-mini", "url": url}
boxes = foz.load_zoo_model("diptych", task="object_detection", min_score=0.3, **florence)
paligemma = {"model": "paligemma-mini", "url": url}
masks = foz.load_zoo_model("diptych", task="instance_segmentation", phrase="square", **paligemma)
text = foz.load_zoo_model("diptych", task="captioning", model="paligemma-mini", url=url)
for name, model in {"florence2": boxes, "paligemma": masks, "caption": text}.items():
    for sample, label in zip(samples, model.predict_all(images, samples), strict=True):
        sample[name] = label
unsaved = boxes.predict(images[0])
first = samples[0]
print("labelled:" + json.dumps([
    [sorted(each.label for each in sample.florence2.detections) for sample in samples],
    sorted(each.label for each in unsaved.detections),
    [[each.label, each.mask.any().item()] for each in first.paligemma.detections],
    first.caption.label]))
"""


@pytest.fixture
def source(tmp_path: Path) -> Iterator[str]:
    """The URL of the zoo source as an archive."""
    zoo = ROOT / "client/fiftyone_zoo"
    with zipfile.ZipFile(tmp_path / "zoo.zip", "w") as archive:
        for name in ("manifest.json", "__init__.py"):
            archive.write(zoo / name, f"zoo/{name}")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever).start()
    yield f"http://127.0.0.1:{server.server_port}/zoo.zip"
    server.shutdown()
    server.server_close()


def test_a_model_of_the_zoo_labels_samples(
    service: RunningService, source: str, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for seed in (3, 4, 5):
        (images / f"{seed}.png").write_bytes(scene_png(seed))
    environment = os.environ | {
        "HOME": str(tmp_path),
        "FIFTYONE_DO_NOT_TRACK": "true",
        "PYTHONPATH": str(ROOT / "client"),
    }
    python = tool_python("fiftyone", "-e", "./client")
    command = [str(python), "-c", LABEL, source, service.url, str(images)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    boxes, of_pixels, masks, caption = json.loads(run.stdout.rpartition("labelled:")[2])
    assert len(boxes) == 3
    assert boxes[0] == of_pixels == ["circle", "square", "star", "triangle"]
    assert masks == [["square", True]]
    assert "square" in caption
