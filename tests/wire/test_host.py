"""Features of Linux: memory, names and ends of processes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.export_cli import ROOT
from tests.support.processes import is_alive
from tests.support.waiting import wait_until
from wire.host import memory_limit_bytes, process_environment

PARENT = """
import subprocess, sys
child = "import os, sys, time; from wire import host;"
child += "host.end_with(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(60)"
subprocess.run([sys.executable, "-c", child, str(__import__("os").getpid())])
"""


def test_environment_of_processes() -> None:
    """Telemetry of libraries is off."""
    environment = process_environment({"PATH": "/bin", "OMP_WAIT_POLICY": "ACTIVE"})
    assert (environment["PATH"], environment["OMP_WAIT_POLICY"]) == ("/bin", "ACTIVE")
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"


@pytest.mark.parametrize(
    ("groups", "file", "text", "limit"),
    [
        ("4:memory:/pods/a\n", "memory/pods/a/memory.limit_in_bytes", "700", 700),
        ("4:memory:/pods/a\n", "memory/memory.limit_in_bytes", "700", 700),  # in a container
        ("0::/pods/a\n1:cpu:/b\n", "pods/a/memory.max", "800", 800),
        ("0::/\n", "memory.max", "800", 800),
        ("0::/\n", "memory.max", "max", None),
        ("1:cpu:/\n", "memory.max", "800", None),
    ],
)
def test_memory_limit_of_the_control_group(
    tmp_path: Path, groups: str, file: str, text: str, limit: int | None
) -> None:
    for name, content in (("proc/self/cgroup", groups), (f"sys/fs/cgroup/{file}", text)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert memory_limit_bytes(tmp_path) == (limit or psutil.virtual_memory().total)


def test_child_ends_with_its_parent() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_alive(child))


def test_child_of_an_ended_parent() -> None:
    begins = "import os; from wire.host import end_with; end_with(os.getpid()); print('begins')"
    child = subprocess.run([sys.executable, "-c", begins], cwd=ROOT, capture_output=True)
    assert (child.returncode, child.stdout) == (1, b"")


# The last of the blocks keeps 200 MB in the heap.
HEAP = """
import ctypes, time
from pathlib import Path
from wire import host

def resident_bytes():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
host._RETURN_EVERY_S = 0.01
host.return_freed_memory_regularly()
blocks = [libc.malloc(100_000) for _ in range(2_000)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
before = resident_bytes()
for block in blocks[:-1]:
    libc.free(block)
while resident_bytes() > before - 180_000_000:
    time.sleep(0.01)
"""


def test_freed_memory_is_returned() -> None:
    subprocess.run([sys.executable, "-c", HEAP], cwd=ROOT, check=True, timeout=60)


# Runs in another process: pytest-xdist shows its own name for a worker's.
SHOWN = """
from pathlib import Path
from wire.host import show_as

command_line = Path("/proc/self/cmdline")
num_bytes = len(command_line.read_bytes())
for title in ("x" * 2 * num_bytes, "diptych"):
    show_as(title)
    assert command_line.read_bytes() == title[: num_bytes - 1].encode().ljust(num_bytes, b"\\0")
"""


def test_name_in_ps() -> None:
    subprocess.run([sys.executable, "-c", SHOWN], cwd=ROOT, check=True)
