"""Other platforms than x86-64 Linux: wheels are published for them, and our code uses only names
that Python has there.

Nothing here runs there.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVICE = ("--group", "pyproject.toml:export", "requirements.txt")
CLIENT = ("--all-extras", "client/pyproject.toml")
LINUX = "aarch64-manylinux_2_40"  # Debian 13 has glibc 2.41
MACOS = "aarch64-apple-darwin"
WINDOWS = "x86_64-pc-windows-msvc"

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("platform", "requirements", "package"),
    [
        (LINUX, SERVICE, "torch"),
        (MACOS, SERVICE, "torch"),
        (LINUX, CLIENT, "grpcio"),
        (MACOS, CLIENT, "grpcio"),
        (WINDOWS, CLIENT, "grpcio"),
    ],
)
def test_every_pinned_package_has_a_wheel(
    platform: str, requirements: tuple[str, ...], package: str
) -> None:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--only-binary", ":all:"]
    run = subprocess.run(
        [*command, "--python-platform", platform, *requirements],
        cwd=ROOT,
        env=os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"},  # onnxruntime's oldest macOS
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"\n{package}==" in run.stdout
    assert "\nnvidia-cu" not in run.stdout  # torch from PyPI brings CUDA for x86-64 only


@pytest.mark.parametrize(
    ("platform", "folders"),
    [
        ("darwin", ["service", "runners", "wire", "imaging", "tasks", "offline", "export"]),
        ("darwin", ["client/diptych_client", "loadtest"]),
        ("win32", ["tasks", "client/diptych_client"]),
    ],
)
def test_no_name_of_another_system_is_used(
    tmp_path: Path, platform: str, folders: list[str]
) -> None:
    command = [sys.executable, "-m", "mypy", "--platform", platform, "--cache-dir", str(tmp_path)]
    run = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
