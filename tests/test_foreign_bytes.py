"""Foreign bytes are read or refused by a declared error: valid ones, those that fuzzing has found,
and new ones.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT
from tests.support.fuzz_targets import TARGETS
from tests.support.fuzzing import check

CORPUS = Path(__file__).parent / "support" / "fuzz_corpus"
SECONDS = 60


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_are_read(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].read(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_found_by_fuzzing_are_read_or_refused_at_once(name: str) -> None:
    for file in sorted((CORPUS / name).glob("*")):
        check(TARGETS[name], file.read_bytes())


def test_every_folder_of_found_inputs_has_a_reader() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} <= TARGETS.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_fuzzing_finds_no_undeclared_error(name: str, tmp_path: Path) -> None:
    """Of an input that fails, the log has the error; commit the input with its fix."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for file in (CORPUS / name).glob("*"):
        shutil.copy(file, corpus)
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.fuzzing", name, str(SECONDS), str(corpus)],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
