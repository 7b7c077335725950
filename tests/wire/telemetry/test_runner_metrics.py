"""Metrics of a GPU: nvidia-ml-py reads them from a library that stands for the driver's."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.export_cli import ROOT

# Source: nvml.h, nvmlMemory_t and nvmlUtilization_t. A variable holds what a function returns.
DRIVER = """
#include <stdlib.h>
#include <string.h>
static int status(const char *name) { return getenv(name) ? atoi(getenv(name)) : 0; }
int nvmlInitWithFlags(unsigned flags) { return status("INIT"); }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = (void *)7;
    return strcmp(uuid, "GPU-1") ? 6 : 0;
}
int nvmlDeviceGetMemoryInfo(void *device, unsigned long long *memory) {
    memory[0] = 80000; memory[1] = 20000; memory[2] = 60000;  /* total, free, used */
    return device == (void *)7 ? status("MEMORY") : 2;
}
int nvmlDeviceGetUtilizationRates(void *device, unsigned *percent) {
    percent[0] = 35; percent[1] = 12;  /* kernels, memory */
    return status("UTILIZATION");
}
const char *nvmlErrorString(int status) { return "another reason"; }
"""
MEASURE = """
import os, sys
from wire.telemetry import runner_metrics as metrics
uuid, *steps = sys.argv[1:]
gauges = (
    metrics.GPU_MEMORY_BYTES, metrics.GPU_MEMORY_USED_BYTES, metrics.GPU_UTILIZATION_RATIO
)
def next_step(_every_s):
    print(*(gauge.labels(uuid)._value.get() for gauge in gauges))
    name, _, status = steps.pop(0).partition("=") if steps else sys.exit()
    os.environ.update({"INIT": "0", "MEMORY": "0", "UTILIZATION": "0", name: status})
assert "pynvml" not in sys.modules
metrics.measure_gpu(uuid, sleep=next_step)
"""
GOOD = "80000.0 60000.0 0.35"
NONE = "nan nan nan"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("gcc is missing: the metrics of GPUs are NOT tested")
    folder = tmp_path_factory.mktemp("driver")
    command = ["cc", "-shared", "-fPIC", "-xc", "-", "-o", str(folder / "libnvidia-ml.so.1")]
    subprocess.run(command, input=DRIVER, text=True, check=True)
    return folder


def measured(folder: Path, uuid: str, steps: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Return the values after each step, and the logged reasons."""
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder)}
    command = [sys.executable, "-c", MEASURE, uuid, *steps]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    reasons = [line.rpartition(": ")[2] for line in run.stderr.splitlines()]
    return run.stdout.splitlines(), reasons


def test_errors_of_a_driver_leave_values_out(library: Path, tmp_path: Path) -> None:
    assert measured(library, "GPU-2") == ([NONE], ["Not Found"])
    assert measured(tmp_path, "GPU-1") == ([NONE], ["NVML Shared Library Not Found"])
    steps = ["UTILIZATION=3", "MEMORY=15", "MEMORY=15", "INIT=9", "MEMORY=77", "UTILIZATION=0"]
    values, reasons = measured(library, "GPU-1", steps)
    assert values == [GOOD, "80000.0 60000.0 nan", *[NONE] * 4, GOOD]
    assert reasons == ["Not Supported", "GPU is lost", "Driver Not Loaded", "another reason"]
