"""Starts that must fail say why; test_hot_adapters.py has another one."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT, ModelStore
from tests.support.running_service import free_port

MODEL = "florence-2-mini"


def failure_of_start(store: ModelStore, **settings: str) -> str:
    ports = {"DIPTYCH_PORT": str(free_port()), "DIPTYCH_GRPC_PORT": str(free_port())}
    run = store.forked("-m", "service.supervision.supervisor", **(ports | settings))
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    return run.stderr


def test_another_system() -> None:
    program = "import sys; from service.__main__ import main; sys.platform = 'darwin'; main()"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    problem = "it requires Linux, not darwin; run the container (docs/operations.md)"
    assert (run.returncode, run.stderr) == (1, f"diptych does not start: {problem}\n")


def test_changed_artifacts(exported: ModelStore, tmp_path: Path) -> None:
    store = ModelStore(Path(shutil.copytree(exported.home, tmp_path / "bentoml", symlinks=True)))
    with (store.newest("paligemma-mini") / "decoder.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert "decoder.safetensors has sha256" in failure_of_start(store)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("DIPTYCH_PROT", "DIPTYCH_PROT is not a setting"),
        ("DIPTYCH_CALIBRATION", "DIPTYCH_CALIBRATION: cannot read"),
    ],
)
def test_invalid_setting(exported: ModelStore, name: str, problem: str) -> None:
    failure = failure_of_start(exported, **{name: "/none"})
    assert f"diptych does not start: {problem}" in failure


@pytest.mark.parametrize(
    ("name", "num_gateways"),
    [
        ("DIPTYCH_PORT", "2"),
        ("DIPTYCH_GRPC_PORT", "1"),
        pytest.param("DIPTYCH_PORT", "1", marks=pytest.mark.long),
        pytest.param("DIPTYCH_GRPC_PORT", "2", marks=pytest.mark.long),
    ],
)
def test_port_in_use(exported: ModelStore, name: str, num_gateways: str) -> None:
    """The port of a program that would share it, as another service with several gateways would."""
    settings = {"DIPTYCH_MODELS": MODEL, "DIPTYCH_GATEWAY_WORKERS": num_gateways}
    port = free_port()
    with socket.create_server(("127.0.0.1", port), reuse_port=True):
        failure = failure_of_start(exported, **settings, **{name: str(port)})
    (line,) = failure.splitlines()
    assert f"cannot listen on 127.0.0.1:{port}" in line
    assert line.endswith(f"; {name} chooses another port")
