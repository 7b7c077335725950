"""The contents of the image, its Containerfile and compose.yaml, without a build."""

import json
import os
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.settings import read_settings
from tests.support.export_cli import EMBEDDED, ROOT, ModelStore

DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
INSTRUCTIONS = re.findall(r"^([A-Z]+) (.*)$", re.sub(r"\\\n", "", CONTAINERFILE), re.MULTILINE)
STAGES = [index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM"]
LAST_STAGE = INSTRUCTIONS[STAGES[-1] :]
COMPOSE: dict[str, dict[str, Any]] = yaml.safe_load(
    (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
)["services"]
OTHER_FILES = {
    "bentofile.yaml",
    "models/catalog.yaml",
    "requirements.txt",
    "requirements-gpu.txt",
    "requirements.lock",
    "LICENSE",
}


def instruction(name: str) -> str:
    """Return the one instruction of this name in the stage that becomes the image."""
    (value,) = [value for instruction_name, value in LAST_STAGE if instruction_name == name]
    return str(value)


@pytest.fixture(scope="module")
def bento(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the image is built in."""
    folder = tmp_path_factory.mktemp("bento") / "bento"
    environment = os.environ | {"BENTOML_HOME": str(exported.home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, "-m", "export.bento", str(folder)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


def committed(*folders: str) -> set[str]:
    """Return the files of folders that git has, or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in run.stdout.split() if (ROOT / name).is_file()}


def test_bento_has_the_code_that_serves(bento: Path) -> None:
    source = bento / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    pictures = committed("service/web/samples")
    code = committed("service", "runners", "wire", "imaging", "tasks")
    assert pictures
    assert files == code - pictures | OTHER_FILES
    copied = [value.split()[:-1] for name, value in INSTRUCTIONS if name == "COPY"]
    words = chain.from_iterable(copied)
    sources = [word for word in words if not word.startswith(("--from", "/"))]
    assert len(sources) == 5
    assert all((bento / name).exists() for name in sources)


def test_image_runs_the_service_without_privileges() -> None:
    assert instruction("USER") == "10001:10001"
    assert instruction("STOPSIGNAL") == "SIGTERM"
    assert json.loads(instruction("ENTRYPOINT")) == ["python", "-m", "service"]
    probe = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert probe == ["python", "-m", "service.supervision.health_check"]
    assert "CMD" not in dict(LAST_STAGE)
    materials = "/opt/diptych/sbom.cdx.json"
    assert ("COPY", f"--from=packages {materials} {materials}") in LAST_STAGE


def test_settings_of_the_image_are_valid() -> None:
    variables = dict(word.split("=", 1) for word in instruction("ENV").split())
    ours = {name: value for name, value in variables.items() if name.startswith("DIPTYCH_")}
    models, _ = [value for name, value in LAST_STAGE if name == "ARG"]
    settings = read_settings(ours | {"DIPTYCH_MODELS": models.partition("=")[2]})
    assert (settings.host, settings.models) == ("0.0.0.0", EMBEDDED)
    assert {str(settings.port), str(settings.grpc_port)} == set(instruction("EXPOSE").split())


def test_compose_confines_the_image() -> None:
    service = COMPOSE["diptych"]
    defaults = read_settings({})
    assert (service["image"], service["read_only"]) == ("diptych", True)
    assert service["cap_drop"] == ["ALL"]
    num_bytes = defaults.max_pending_requests * defaults.max_body_bytes
    assert int(service["shm_size"].rstrip("m")) << 20 > num_bytes
    assert int(service["stop_grace_period"].rstrip("s")) > defaults.request_timeout_s + 20


def test_compose_mounts_existing_files_and_opens_no_port() -> None:
    volumes = chain.from_iterable(service.get("volumes", ()) for service in COMPOSE.values())
    paths = [DEPLOY / volume.split(":")[0] for volume in volumes if volume.startswith("./")]
    assert len(paths) == 4
    assert all(path.exists() for path in paths)
    ports = {name: service["ports"] for name, service in COMPOSE.items() if "ports" in service}
    assert all(port.startswith("127.0.0.1:") for port in chain.from_iterable(ports.values()))
    assert "diptych" not in ports  # behind the proxy
    assert ports["front"] == ["127.0.0.1:3000:3000", "127.0.0.1:3001:3001"]
    configuration = "./haproxy/front.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"
    assert configuration in COMPOSE["front"]["volumes"]
