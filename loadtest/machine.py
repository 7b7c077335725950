"""What this machine can do: float32 and int8 matrix products, and reading memory (python -m loadtest.machine).

Each is the best of several tries, on one core and on all that this process may run on: a limit, not a mean. It prints
JSON.

    float32   torch, 2048 × 2048 × 2048
    int8      ONNX Runtime's MatMulInteger, uint8 times a constant int8, of the same size
    memory    torch, a float32 matrix of 1 GiB times a vector: every byte is read once, as weights are in a decode step
    step      the same with a matrix of as many bytes as a decode step reads: caches help it as they help the step
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

_SIDE = 2048
_OPERATIONS = 2 * _SIDE**3
_TRY_FOR_S = 1.5
_COLUMNS = 4096
_MEMORY_BYTES = 1 << 30
_OPSET, _IR_VERSION = 17, 8  # the lowest that has what is used here


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Most operations and bytes per second."""

    num_threads: int
    float32_per_s: float
    int8_per_s: float
    memory_bytes_per_s: float
    step_bytes_per_s: dict[str, float]  # by the bytes of a step, written as a decimal number


def measure(num_threads: int, steps_bytes: Sequence[int] = ()) -> MachineRates:
    """Measure with `num_threads` threads."""
    torch.set_num_threads(num_threads)
    return MachineRates(
        num_threads,
        float32_per_s=_float32_rate(),
        int8_per_s=_int8_rate(num_threads),
        memory_bytes_per_s=_read_rate(_MEMORY_BYTES),
        step_bytes_per_s={str(num_bytes): _read_rate(num_bytes) for num_bytes in steps_bytes},
    )


def _float32_rate() -> float:
    left, right = torch.rand(2, _SIDE, _SIDE)
    out = torch.empty(_SIDE, _SIDE)
    return _OPERATIONS / _best_s(lambda: torch.mm(left, right, out=out))


def _int8_rate(num_threads: int) -> float:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(_int8_graph(), options, providers=["CPUExecutionProvider"])
    left = np.random.default_rng(0).integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
    return _OPERATIONS / _best_s(lambda: session.run(None, {"left": left}))


def _int8_graph() -> bytes:
    values = np.random.default_rng(1).integers(-127, 128, (_SIDE, _SIDE), dtype=np.int8)
    shape = [_SIDE, _SIDE]
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["left", "right"], ["product"])],
        "int8",
        [helper.make_tensor_value_info("left", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("product", TensorProto.INT32, shape)],
        [numpy_helper.from_array(values, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized


def _read_rate(num_bytes: int) -> float:
    matrix = torch.rand(num_bytes // 4 // _COLUMNS, _COLUMNS)
    vector, out = torch.rand(_COLUMNS), torch.empty(len(matrix))
    return matrix.nbytes / _best_s(lambda: torch.mv(matrix, vector, out=out))


def _best_s(work: Callable[[], Any]) -> float:
    """Return the shortest time of `work`, after once to warm up, repeated for some time."""
    work()
    end_s, best_s = time.perf_counter() + _TRY_FOR_S, float("inf")
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


def main() -> None:
    """Measure on one core and on all."""
    parser = argparse.ArgumentParser("python -m loadtest.machine", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--step-bytes", nargs="*", type=int, default=[], metavar="N")
    steps_bytes = parser.parse_args().step_bytes
    cores = len(os.sched_getaffinity(0))
    print(json.dumps([asdict(measure(num_threads, steps_bytes)) for num_threads in sorted({1, cores})]))


if __name__ == "__main__":
    main()
