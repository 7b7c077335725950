"""The client as a wheel in an empty environment, against the running service: what `pip install
./client` gives.
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png

UV = (sys.executable, "-m", "uv", "--quiet")  # pip takes half a minute
FIND = """
from importlib.util import find_spec
print([name for name in ("service", "torch", "bentoml", "supervision") if find_spec(name)])
"""
STREAM = """
import sys
from diptych_client import Answer, Client
with Client(sys.argv[1]) as client:
    *texts, answer = client.stream(sys.argv[2], "captioning")
assert isinstance(answer, Answer) and "".join(texts) == answer.raw_text
print(answer.result.text)
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


def test_installed_client_predicts_and_streams(
    environment: Path, service: RunningService, tmp_path: Path
) -> None:
    assert output(environment / "python", "-c", FIND) == "[]\n"
    scene = tmp_path / "scene.png"
    scene.write_bytes(scene_png())
    raw_texts = set()
    captions = set()
    for url in (service.url, f"grpc://{service.grpc_address}"):
        words = ("--url", url, "predict", scene, "--task", "object_detection")
        table = output(environment / "diptych", *words)
        answer = json.loads(output(environment / "diptych", *words, "--json"))
        for detection in answer["result"]["detections"]:
            assert detection["label"] in table
        raw_texts.add(answer["raw_text"])
        captions.add(output(environment / "python", "-c", STREAM, url, scene).strip())
    assert (len(raw_texts), len(captions)) == (1, 1)
    assert all(captions | raw_texts)
