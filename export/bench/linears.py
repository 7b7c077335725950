"""Throughput of float32 matrix products: torch's `linear` and our packed layer (`python -m
export.bench.linears`).

Prints 10^9 floating-point operations per second, the median of several tries. `to_mkldnn` is
torch's public way to oneDNN, which copies input and output at every call.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor

from runners.models.linear import FloatLinear, Linear, PackedLinear

_SHAPES = [(rows, out, into) for out, into in ((3072, 768), (384, 128)) for rows in (1, 4, 16, 590)]
_TRIES = 7
_TRY_FOR_S = 0.1


def rate(product: Callable[[], Tensor], num_operations: int) -> float:
    """Return operations per second of `product`, which performs `num_operations`."""
    product()
    return num_operations / statistics.median(_mean_s(product) for _ in range(_TRIES))


def to_mkldnn(weight: Tensor, bias: Tensor) -> Linear:
    """Return the layer that torch.utils.mkldnn makes of torch.nn.Linear."""
    with warnings.catch_warnings():
        # torch 2.13: it is written in TorchScript
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.utils.mkldnn import MkldnnLinear

        linear = torch.nn.Linear(*weight.T.shape)
        linear.weight = torch.nn.Parameter(weight)
        linear.bias = torch.nn.Parameter(bias)
        return cast(Linear, MkldnnLinear(linear, torch.float32))


def _mean_s(product: Callable[[], Tensor]) -> float:
    start_s = time.perf_counter()
    num_times = 0
    while (elapsed_s := time.perf_counter() - start_s) < _TRY_FOR_S:
        product()
        num_times += 1
    return elapsed_s / num_times


@torch.inference_mode()
def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(
        "python -m export.bench.linears", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of torch; default: %(default)s"
    )
    torch.set_num_threads(parser.parse_args().threads)
    for rows, out, into in _SHAPES:
        states = torch.randn(rows, into)
        weight = torch.randn(out, into)
        bias = torch.randn(out)
        layers: dict[str, Linear] = {
            "linear": FloatLinear(weight, bias),
            "to_mkldnn": to_mkldnn(weight, bias),
            "packed": PackedLinear.of(weight, bias),
            "view": PackedLinear.view(weight),
        }
        rates = {
            name: rate(partial(layer, states), 2 * rows * out * into) / 1e9
            for name, layer in layers.items()
        }
        print(
            f"{rows} rows, {out} x {into}, G/s:",
            *(f"{name} {each:.0f}" for name, each in rates.items()),
        )


if __name__ == "__main__":
    main()
