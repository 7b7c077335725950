"""Failed tests run once more, alone; what fails twice or cannot be collected fails the run."""

import subprocess
import sys
from pathlib import Path

from tests.support.catalog import ROOT

PASSES = "def test_passes(): pass\n"
FLAKY = """
from pathlib import Path
def test_flaky():
    seen = Path("seen")
    was_seen = seen.exists()
    seen.touch()
    assert was_seen
"""
FAILS = "def test_fails(): assert False\n"


def run(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(PASSES + source)
    command = [sys.executable, "-m", "tests.support.flaky", "-n", "2"]
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    environment = plugins | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_flaky_test_is_printed_and_passes(tmp_path: Path) -> None:
    finished = run(tmp_path, FLAKY)
    assert finished.returncode == 0, finished.stdout
    flaky, first, second = finished.stdout.splitlines()[-3:]
    assert flaky == "flaky: test_it.py::test_flaky"
    assert "1 failed, 1 passed" in first
    assert second.startswith("again, alone: ")
    assert "1 passed" in second


def test_second_failure_fails_the_run(tmp_path: Path) -> None:
    finished = run(tmp_path, FLAKY + FAILS)
    assert finished.returncode == 1, finished.stdout
    lines = finished.stdout.splitlines()
    flaky = [line for line in lines if line.startswith("flaky: ")]
    assert flaky == ["flaky: test_it.py::test_flaky"]


def test_module_that_cannot_be_collected_fails_the_run(tmp_path: Path) -> None:
    finished = run(tmp_path, "import no_such_module\n")
    assert finished.returncode == 1, finished.stdout
    assert "again" not in finished.stdout


def test_run_without_tests_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("collect_ignore = ['test_it.py']\n")
    assert run(tmp_path, "").returncode == 5
