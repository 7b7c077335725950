import os
import signal
import subprocess
import sys
from pathlib import Path

from service.supervision.supervisor import run_folder
from tests.support.export_cli import ROOT

HOLDER = """
import sys
from service.supervision.supervisor import run_folder
with run_folder() as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def holder() -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLDER]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def folder_of(process: "subprocess.Popen[str]") -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def test_folder_is_in_memory_private_and_removed_at_the_end() -> None:
    with run_folder() as folder:
        (folder / "file").write_text("x")
        assert folder.parent == Path("/dev/shm")
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_next_start_removes_folders_of_killed_owners_only() -> None:
    with holder() as killed, holder() as living:
        left = folder_of(killed)
        in_use = folder_of(living)
        (left / "file").write_text("x")
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait(30)
        assert left.exists()
        with run_folder():
            assert not left.exists()
            assert in_use.exists()
        living.communicate("", timeout=30)
    assert not in_use.exists()
