"""The gateway's process: what it sets up before it answers."""

import subprocess
import sys

from tests.support.export_cli import ROOT

# Prints whether BentoML keeps metrics, then how many of sixteen blocks are returned to the system
# when they are freed. glibc keeps blocks of a size that was freed before; mallinfo2 is of 2.33.
BLOCKS = """
import ctypes, os
from service.gateway import Gateway, _return_large_blocks

print(Gateway.config["metrics"]["enabled"])

class Heap(ctypes.Structure):
    _fields_ = [("before", ctypes.c_size_t * 3), ("hblks", ctypes.c_size_t),
                ("after", ctypes.c_size_t * 6)]

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
os.environ["MALLOC_MMAP_THRESHOLD_"] = "33554432"  # an operator's
_return_large_blocks()
print(num_mapped())
del os.environ["MALLOC_MMAP_THRESHOLD_"]
_return_large_blocks()
print(num_mapped())
"""


def test_gateway_keeps_neither_metrics_nor_freed_memory() -> None:
    run = subprocess.run(
        [sys.executable, "-c", BLOCKS], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False", "0", "16"]
