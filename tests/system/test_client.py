"""The client beside the running service: its command, `diptych mcp` as an agent calls it, and its
wheel in an empty environment, which is what `pip install ./client` gives.
"""

import json
import os
import signal
import subprocess
import sys
import tomllib
from functools import partial
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import mcp
import pytest
from anyio.from_thread import start_blocking_portal
from pycocotools.coco import COCO

from diptych_client import Client
from diptych_client.json_values import to_json
from tests.support.client_command import DIPTYCH, command, run
from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_image, scene_png
from tests.support.waiting import wait_until
from tests.system.service_metrics import metric

NUM_IMAGES = 60


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with `NUM_IMAGES` small scenes, some of them in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(NUM_IMAGES):
        path = folder / ("more" if index % 3 else "") / f"{index:03}.png"
        scene_image(index, (96, 64)).save(path)
    return folder


def journal_names(out: Path) -> list[str]:
    file = out / "journal.jsonl"
    whole, _, _ = file.read_bytes().rpartition(b"\n") if file.exists() else (b"", b"", b"")
    return [json.loads(line)["image"] for line in whole.splitlines()]


def num_requests(service: RunningService) -> float:
    return metric(service, "diptych_requests_total", api="rest", task="object_detection")


@pytest.mark.parametrize(
    "stop", [pytest.param(signal.SIGKILL, marks=pytest.mark.long), signal.SIGINT]
)
def test_interrupted_run_is_resumed(
    service: RunningService, photos: Path, stop: signal.Signals
) -> None:
    out = photos.with_name("out")
    words = ("annotate", photos, "--task", "object_detection", "--out", out, "--concurrency", "1")
    before = num_requests(service)
    # a shell's background processes ignore SIGINT
    enable_sigint = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    options: dict[str, Any] = {"preexec_fn": enable_sigint, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command(service, *words), **options) as process:
        wait_until(lambda: len(journal_names(out)) >= 10 or process.poll() is not None)
        process.send_signal(stop)
    assert process.returncode == {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130}[stop]
    assert 10 <= len(journal_names(out)) < NUM_IMAGES
    with (out / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"key": "torn')
    finished = run(service, *words)
    assert finished.returncode == 0, finished.stderr
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert sorted(journal_names(out)) == names
    assert NUM_IMAGES <= num_requests(service) - before <= NUM_IMAGES + 1
    images = COCO(out / "annotations.json").imgs.values()
    assert sorted(image["file_name"] for image in images) == names


def test_mcp_has_the_boxes_of_the_client(url: str, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    scene.write_bytes(scene_png())
    arguments = ["--url", url, "--max-retries", "0", "mcp"]
    server = mcp.StdioServerParameters(command=DIPTYCH, args=arguments, env=dict(os.environ))
    agent = mcp.Client(server, read_timeout_seconds=60)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(agent):
        portal.call(agent.list_tools)
        result: Any = portal.call(agent.call_tool, "object_detection", {"image": str(scene)})
    assert not result.is_error
    (content,) = result.content
    assert json.loads(content.text) == result.structured_content
    (answer,) = result.structured_content["answers"]
    with Client(url) as client:
        expected = to_json(client.predict(scene, "object_detection"))["result"]["detections"]
    assert expected
    for detection, other in zip(answer["detections"], expected, strict=True):
        assert detection["label"] == other["label"]
        assert detection["box"] == pytest.approx(other["box"], abs=0.051)


UV = (sys.executable, "-m", "uv", "--quiet")  # pip takes half a minute
FIND = """
from importlib.util import find_spec
print([name for name in ("service", "torch", "bentoml", "supervision") if find_spec(name)])
"""


@pytest.fixture(scope="module")
def wheel(folder: Path) -> Path:
    subprocess.run([*UV, "build", "--wheel", "--out-dir", folder, ROOT / "client"], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, folder: Path) -> Path:
    """The `bin` folder of an environment that contains the wheel and its dependencies, in the
    versions used here.
    """
    pins = [f"{package.name}=={package.version}\n" for package in distributions()]
    (folder / "constraints.txt").write_text("".join(pins))
    subprocess.run([*UV, "venv", "--python", sys.executable, folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    target = ("--python", python, "--constraints", folder / "constraints.txt")
    subprocess.run([*UV, "pip", "install", *target, wheel], check=True)
    return python.parent


def output(*command: str | Path) -> str:
    """Return what a command prints, run outside of the repository."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options: dict[str, Any] = {"cwd": "/", "env": environment, "timeout": 60}
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, **options)
    return str(run.stdout)


def test_wheel_has_the_package_alone(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    project = tomllib.loads((ROOT / "client/pyproject.toml").read_text(encoding="utf-8"))["project"]
    information = f"diptych_client-{project['version']}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"diptych_client", information}
    assert {"diptych_client/py.typed", "diptych_client/transports/vision_pb2.py"} <= names


def test_installed_client_predicts(
    environment: Path, service: RunningService, tmp_path: Path
) -> None:
    assert output(environment / "python", "-c", FIND) == "[]\n"
    scene = tmp_path / "scene.png"
    scene.write_bytes(scene_png())
    expected = service.predict(task="object_detection").json()["raw_text"]
    words = ("predict", scene, "--task", "object_detection", "--json")
    for url in (service.url, f"grpc://{service.grpc_address}"):
        answer = json.loads(output(environment / "diptych", "--url", url, *words))
        assert answer["raw_text"] == expected != ""
