"""The client as a wheel in an empty environment, against the running service: what `pip install
./client` gives.
"""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.export_cli import ROOT
from tests.support.running_service import RunningService
from tests.support.scene_images import scene_png

UV = (sys.executable, "-m", "uv", "--quiet")  # pip takes half a minute
STREAM = """
import sys
from diptych_client import Answer, Client
with Client(sys.argv[1]) as client:
    *texts, answer = client.stream(sys.argv[2], "captioning")
assert isinstance(answer, Answer) and "".join(texts) == answer.raw_text
print(answer.result.text)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([*UV, "build", "--wheel", "--out-dir", folder, ROOT / "client"], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of an environment that contains the wheel and its dependencies, in the
    versions used here.
    """
    folder = tmp_path_factory.mktemp("environment")
    pins = "".join(f"{each.name}=={each.version}\n" for each in distributions())
    constraints = folder / "constraints.txt"
    constraints.write_text(pins)
    subprocess.run([*UV, "venv", "--python", sys.executable, folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    target = ("--python", python, "--constraints", constraints)
    subprocess.run([*UV, "pip", "install", *target, wheel], check=True)
    return python.parent


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    return path


def output(*command: str | Path) -> str:
    """Return what a command prints, run outside of the repository."""
    return subprocess.run(
        command, cwd="/", capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_the_wheel_contains_the_package_its_types_and_its_grpc_code(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    client = tomllib.loads((ROOT / "client/pyproject.toml").read_text(encoding="utf-8"))
    assert {name.partition("/")[0] for name in names} == {
        "diptych_client",
        f"diptych_client-{client['project']['version']}.dist-info",
    }
    assert {"diptych_client/py.typed", "diptych_client/transports/vision_pb2.py"} <= names


def test_the_environment_has_neither_the_service_nor_torch(environment: Path) -> None:
    found = "[name for name in ('service', 'torch', 'bentoml', 'supervision') if find_spec(name)]"
    assert (
        output(
            environment / "python", "-c", f"from importlib.util import find_spec; print({found})"
        )
        == "[]\n"
    )


def test_the_installed_command_predicts_over_rest_and_grpc(
    environment: Path, service: RunningService, scene: Path
) -> None:
    answers = []
    for url in (service.url, f"grpc://{service.grpc_address}"):
        words = ("--url", url, "predict", scene, "--task", "object_detection")
        shown = output(environment / "diptych", *words)
        answers.append(json.loads(output(environment / "diptych", *words, "--json")))
        labels = {detection["label"] for detection in answers[-1]["result"]["detections"]}
        assert labels
        assert all(label in shown for label in labels)
    assert answers[0]["raw_text"] == answers[1]["raw_text"]


def test_the_installed_package_streams_over_rest_and_grpc(
    environment: Path, service: RunningService, scene: Path
) -> None:
    urls = (service.url, f"grpc://{service.grpc_address}")
    first, second = (output(environment / "python", "-c", STREAM, url, scene) for url in urls)
    assert first == second != "\n"
