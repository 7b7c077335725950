"""The gateway's process: what it sets up before it answers."""

import subprocess
import sys

import pytest

from tests.support.export_cli import ROOT

# Prints whether BentoML keeps metrics, then how many of sixteen blocks are returned to the system
# when they are freed. glibc keeps blocks of a size that was freed before; mallinfo2 is of 2.33.
BLOCKS = """
import ctypes
from service.gateway import Gateway, _return_large_blocks

print(Gateway.config["metrics"]["enabled"])
NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
         "fordblks", "keepcost")

class Heap(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.mallinfo2.restype = Heap

def num_mapped():
    before = libc.mallinfo2().hblks
    blocks = [libc.malloc(8_000_000) for _ in range(16)]
    num_mapped = libc.mallinfo2().hblks - before
    for block in blocks:
        libc.free(block)
    return num_mapped

num_mapped()
print(num_mapped())
_return_large_blocks()
print(num_mapped())
"""


@pytest.fixture(scope="module")
def printed() -> list[str]:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_bentoml_keeps_no_metrics(printed: list[str]) -> None:
    assert printed[0] == "False"


def test_freed_memory_is_returned(printed: list[str]) -> None:
    assert printed[1:] == ["0", "16"]
