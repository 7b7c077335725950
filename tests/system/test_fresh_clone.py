"""The first hour of a new user: a clone, an empty home, no variables, environments made by pip.

`make serve`, the installs of all pages and the README's blocks are run there. It needs 5 GB of
disk and pip's index.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.tables import PAGES
from tests.support.export_cli import ROOT
from tests.support.running_service import OPEN, free_port, running_service
from tests.system.test_readme import BLOCKS, check

INSTALL = re.compile(r'^pip install ("?\./client.*?)(?:\s+#.*)?$', re.MULTILINE)
GROUP = re.compile(r"^\.venv/bin/python -m (pip install .* --group \w+)$", re.MULTILINE)
# FiftyOne brings a database.
NOT_INSTALLED = "fiftyone"
START_TIMEOUT_S = 3600  # pip, the export, then the service, beside other work


@dataclass(frozen=True, slots=True)
class NewUser:
    """A clone, and the variables of a shell in it."""

    clone: Path
    variables: dict[str, str]

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.clone, env=self.variables, capture_output=True, text=True
        )

    def done(self, *words: str | Path) -> str:
        """Return what a command prints that must succeed."""
        run = self.run(*words)
        assert run.returncode == 0, f"{words}\n{run.stdout}\n{run.stderr}"
        return run.stdout


@pytest.fixture
def user(tmp_path: Path) -> Iterator[NewUser]:
    clone = tmp_path / "diptych"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    (tmp_path / "home").mkdir()
    python = Path(sys.base_prefix) / "bin"  # this Python, without its packages
    variables = {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{tmp_path}/env/bin:{python}:/usr/local/bin:/usr/bin:/bin",
        "PIP_NO_CACHE_DIR": "1",  # it would hold each package a second time
    }
    # where pip finds packages is of the place, not of us
    pip = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    yield NewUser(clone, pip | variables)
    shutil.rmtree(tmp_path)


def install_commands(pattern: re.Pattern[str]) -> list[str]:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    commands = dict.fromkeys(pattern.findall(text))
    return [command for command in commands if NOT_INSTALLED not in command]


@pytest.mark.long
def test_commands_of_the_pages_in_a_fresh_clone(user: NewUser, tmp_path: Path) -> None:
    ports = {"DIPTYCH_PORT": str(free_port()), "DIPTYCH_GRPC_PORT": str(free_port())}
    batches = {"DIPTYCH_BATCHES_FOLDER": str(tmp_path / "batches")}  # docs/batches.md asks for it
    variables = user.variables | ports | batches
    given = [f"{name}={value}" for name, value in variables.items()]
    make_serve = ("env", "-i", *given, "make", "-C", str(user.clone), "serve")
    log = tmp_path / "serve.log"
    with running_service(tmp_path, log, OPEN, make_serve, START_TIMEOUT_S, **ports) as service:
        folder = tmp_path / "written"
        folder.mkdir()
        user.done("python3", "-m", "venv", tmp_path / "env")
        first, *extras = install_commands(INSTALL)
        user.done("pip", "install", "--quiet", *shlex.split(first))
        for block in BLOCKS:
            check(block, service, folder, user.run)
        user.done("pip", "install", "--quiet", *shlex.split(" ".join(extras)))
        assert "florence-2-mini" in user.done(".venv/bin/python", "-m", "export", "doctor")
    for command in install_commands(GROUP):
        user.done(".venv/bin/python", "-m", *shlex.split(command))
    offline = ("offline", "service/web/samples", "--task", "captioning")
    answers = ("--model", "florence-2-mini", "--output", tmp_path / "answers")
    user.done(".venv/bin/python", "-m", *offline, *answers)
    rows = [f'{{"image": "{name}.png", "caption": "shapes"}}' for name in ("jb", "juix", "oni")]
    (tmp_path / "labels.jsonl").write_text("\n".join(rows))
    samples = ("--images", "service/web/playground/samples")
    images = (*samples, "--epochs", "1", "--output", tmp_path / "tuned")
    tune = ("export.tune", tmp_path / "labels.jsonl", "--base", "florence-2-mini")
    user.done(".venv/bin/python", "-m", *tune, "--task", "captioning", *images)
    assert (tmp_path / "tuned" / "README.md").exists()
