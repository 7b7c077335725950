"""Each command of a page is run by a test, or listed with the reason why it is not.

Blocks of bash, python and sh are run by tests/system/test_pages.py, those of console by
tests/system/test_guarantee_page.py, blocks of `shell` here. A block without a language has commands
that are not run as they are written.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import yaml

from docs.tables import PAGES
from tests.support.export_cli import ROOT

LIST = ROOT / "tests" / "support" / "commands_not_run.yaml"
NOT_RUN: dict[str, list[str]] = yaml.safe_load(LIST.read_text(encoding="utf-8"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = {"bash", "console", "python", "sh", "shell"}
SHOWN = {"haproxy", "json", "text", "xml", "yaml"}  # files, and what is printed
COMMENT = re.compile(r"\s{2,}#.*")


def blocks(language: str) -> Iterator[str]:
    for page in PAGES:
        for given, code in BLOCK.findall(page.read_text(encoding="utf-8")):
            assert given in {"", *RUN, *SHOWN}, f"{page.name}: unknown language {given!r}"
            if given == language:
                yield code


def commands_that_no_test_runs() -> set[str]:
    lines = "\n".join(blocks("")).replace("\\\n", " ").splitlines()
    return {" ".join(COMMENT.sub("", line).split()) for line in lines} - {""}


def test_a_command_of_a_page_is_run_or_listed_with_its_reason() -> None:
    listed = list(chain.from_iterable(NOT_RUN.values()))
    assert commands_that_no_test_runs() - set(listed) == set(), f"not in {LIST.name}"
    assert set(listed) - commands_that_no_test_runs() == set(), "listed, but on no page"
    assert len(listed) == len(set(listed))


def test_the_tests_that_a_reason_names_are_there() -> None:
    for reason in NOT_RUN:
        named = re.findall(r"(?:tests|\.ci)/[\w/.]*\w", reason)
        assert [name for name in named if not (ROOT / name).exists()] == [], reason


def test_the_commands_for_a_key_print_its_hash(tmp_path: Path) -> None:
    (code,) = blocks("shell")
    run = subprocess.run(["bash", "-ec", code], cwd=tmp_path, capture_output=True, check=True)
    key = (tmp_path / "key").read_text().strip()
    assert run.stdout.decode().strip() == hashlib.sha256(key.encode()).hexdigest()
