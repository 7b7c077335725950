"""The contents of the image and its Containerfile, as far as they can be checked without a
build.
"""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import yaml

from service.settings import read_settings
from tests.support.export_cli import EMBEDDED, ROOT, ModelStore

CONTAINERFILE = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n", "", CONTAINERFILE), re.MULTILINE)
LAST_STAGE = INSTRUCTIONS[
    max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :
]


def instruction(name: str) -> str:
    """Return the one instruction of this name in the stage that becomes the image."""
    (only,) = [value for each, value in LAST_STAGE if each == name]
    return str(only)


@pytest.fixture(scope="module")
def bento(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image is built in."""
    folder = tmp_path_factory.mktemp("bento") / "bento"
    environment = os.environ | {"BENTOML_HOME": str(exported.home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "export.bento", str(folder)]
    run = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return folder


def committed(*folders: str) -> set[str]:
    """Return the files of folders that git has, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    return set(
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    )


def test_the_bento_has_the_code_that_serves_and_nothing_else(bento: Path) -> None:
    files = {
        str(path.relative_to(bento / "src"))
        for path in (bento / "src").rglob("*")
        if path.is_file()
    }
    pictures = committed("service/web/samples")
    beside = {
        "bentofile.yaml",
        "models/catalog.yaml",
        "requirements.txt",
        "requirements-gpu.txt",
        "LICENSE",
    }
    beside |= {"requirements.lock"}
    assert pictures
    assert files == committed("service", "runners", "wire", "imaging", "tasks") - pictures | beside


def test_gpu_check_installs_the_packages_of_the_gpu_image() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    replaced = [
        re.findall(r"sed (?:-i )?-E ('.*') requirements.txt && cat requirements-gpu.txt", text)
        for text in (makefile, CONTAINERFILE)
    ]
    assert replaced[0] == replaced[1]
    assert len(replaced[0]) == 1
    assert "$(GPU)/bin/python -m laboratory.gpu_check" in makefile


def test_what_is_copied_is_in_the_bento(bento: Path) -> None:
    copied = [value.split()[:-1] for name, value in INSTRUCTIONS if name == "COPY"]
    words = chain.from_iterable(copied)
    sources = [word for word in words if not word.startswith(("--from", "/"))]
    assert len(sources) == 5
    assert all((bento / source).exists() for source in sources)


def test_the_image_runs_the_service_as_nobody_in_particular() -> None:
    assert instruction("USER") == "10001:10001"
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert json.loads(instruction("ENTRYPOINT")) == ["python", "-m", "service"]
    probe = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert probe == ["python", "-m", "service.supervision.health_check"]
    assert not [value for name, value in LAST_STAGE if name == "CMD"]


def test_settings_of_the_image_are_settings() -> None:
    words = dict(word.split("=", 1) for word in instruction("ENV").split())
    given = {name: value for name, value in words.items() if name.startswith("DIPTYCH_")}
    models, _ = [value for name, value in LAST_STAGE if name == "ARG"]
    settings = read_settings(given | {"DIPTYCH_MODELS": models.partition("=")[2]})
    assert (settings.host, settings.models) == ("0.0.0.0", EMBEDDED)
    assert {str(settings.port), str(settings.grpc_port)} == set(instruction("EXPOSE").split())


def test_compose_runs_the_image_as_confined_as_it_is_made() -> None:
    service = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))[
        "services"
    ]["diptych"]
    assert (service["image"], service["read_only"], service["cap_drop"]) == (
        "diptych",
        True,
        ["ALL"],
    )
    defaults = read_settings({})
    assert (
        int(service["shm_size"].rstrip("m")) << 20
        > defaults.max_pending_requests * defaults.max_body_bytes
    )
    assert int(service["stop_grace_period"].rstrip("s")) > defaults.request_timeout_s + 20
