"""The machine's limits: float32 and int8 matrix products, memory bandwidth (python -m
laboratory.bench.machine).

Each is the best of several tries, on one core and on all cores of this process: a limit, not a
mean. It prints JSON.

    float32   ONNX Runtime's MatMul with a constant, 2048 × 2048 × 2048
    int8      its MatMulInteger, uint8 times a constant int8, of the same size
    memory    torch, the sum of 1 GiB of float32: every byte is read once, like the weights in a
              decode step
    step      the same with the bytes of a decode step, which caches speed up as they do the step

torch's own products are not the limit: its MKL reaches two fifths of the float32 rate and half of
the bandwidth of an AMD core with AVX-512.
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
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

_SIDE = 2048
_OPERATIONS = 2 * _SIDE**3
_TRY_FOR_S = 1.5
_MEMORY_BYTES = 1 << 30
# lowest versions with these operators
_OPSET = 17
_IR_VERSION = 8


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Maximum operations and bytes per second."""

    num_threads: int
    float32_per_s: float
    int8_per_s: float
    memory_bytes_per_s: float
    step_bytes_per_s: dict[str, float]  # keyed by a step's bytes, in decimal


def measure(num_threads: int, steps_bytes: Sequence[int] = ()) -> MachineRates:
    torch.set_num_threads(num_threads)
    random = np.random.default_rng(0)
    one, other = random.random((2, _SIDE, _SIDE), dtype=np.float32)
    left = random.integers(0, 256, (_SIDE, _SIDE), dtype=np.uint8)
    right = random.integers(-127, 128, (_SIDE, _SIDE), dtype=np.int8)
    return MachineRates(
        num_threads,
        float32_per_s=_product_rate("MatMul", one, other, TensorProto.FLOAT, num_threads),
        int8_per_s=_product_rate("MatMulInteger", left, right, TensorProto.INT32, num_threads),
        memory_bytes_per_s=_read_rate(_MEMORY_BYTES),
        step_bytes_per_s={str(num_bytes): _read_rate(num_bytes) for num_bytes in steps_bytes},
    )


def _product_rate(
    operator: str, left: NDArray[Any], right: NDArray[Any], product_type: int, num_threads: int
) -> float:
    """Return the operations per second of `left` times the constant `right`."""
    left_type = helper.np_dtype_to_tensor_dtype(left.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", left_type, left.shape)],
        [helper.make_tensor_value_info("product", product_type, left.shape)],
        [numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return _OPERATIONS / _best_s(lambda: session.run(None, {"left": left}))


def _read_rate(num_bytes: int) -> float:
    numbers = torch.rand(num_bytes // 4)
    return numbers.nbytes / _best_s(lambda: numbers.sum())


def _best_s(work: Callable[[], Any]) -> float:
    """Return the shortest time of `work`, repeated for `_TRY_FOR_S` after one warm-up."""
    work()
    end_s = time.perf_counter() + _TRY_FOR_S
    best_s = float("inf")
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - start_s)
    return best_s


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m laboratory.bench.machine", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--step-bytes", nargs="*", type=int, default=[], metavar="N")
    steps_bytes = parser.parse_args().step_bytes
    cores = len(os.sched_getaffinity(0))
    rates = [measure(num_threads, steps_bytes) for num_threads in sorted({1, cores})]
    print(json.dumps([asdict(rate) for rate in rates]))


if __name__ == "__main__":
    main()
