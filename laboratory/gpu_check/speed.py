"""Durations of encoder, prefill and steps on the device, a sampled sequence among greedy ones, and
throughput.
"""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from laboratory.bench.steps import make_endless
from laboratory.gpu_check.parts import Model, admitted, elapsed_ms, median_ms, requests, scheduler
from laboratory.gpu_check.verdicts import Verdict
from runners.decoder.engines import new_engine
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import WrittenSequence
from runners.encoder.fixed_batches import batch_sizes
from runners.encoder.session import CudaOptions
from wire.artifacts.manifest import Device

_BATCHES = (1, 4, 16)
_MAX_OF_PLAIN = 1.1  # ratio for one image: time with CUDA graphs by time without
_ROWS = (1, 16, 64)
_NUM_LENGTHS = 50
_NUM_STEPS = 48
_KERNEL_S = 2e-6  # time of a graph's smallest kernel
_MAX_OF_LIMIT = 2.0
_MAX_TAIL = 3.0  # slowest prefill by the median
_MAX_SAMPLED = 1.2  # step with one sampled row by a greedy one
_STEPS_AT_ONCE = 8  # a step leaves its successor's pass to the device
_NUM_TOKENS, _IN_FLIGHT = 30, 64  # load of the throughput check


def check_encoder(model: Model, device: Device) -> Verdict:
    """Time batches of images with CUDA graphs and without, and count the sizes that are
    captured.
    """
    images = model.images(max(_BATCHES))
    encoder = model.encoder(device)
    plain = model.encoder(device, cuda=CudaOptions(with_graphs=False))
    times = [
        {num: median_ms(partial(each.encode, images[:num]), device) for num in _BATCHES}
        for each in (encoder, plain)
    ]
    measured: dict[str, Any] = {f"{num} images, ms": time_ms for num, time_ms in times[0].items()}
    measured |= {f"{num} without graphs, ms": time_ms for num, time_ms in times[1].items()}
    sizes = batch_sizes(max(_BATCHES)) if device == "cuda" else []
    captured = encoder.fixed_batches.captured_sizes if encoder.fixed_batches else []
    measured |= {"captured sizes": captured}
    aim = (
        f"captured sizes {sizes}; no slower for each image of 16 than alone, nor for 1 than without"
        " graphs"
    )
    is_fast = times[0][16] <= 16 * times[0][1] and times[0][1] <= _MAX_OF_PLAIN * times[1][1]
    return Verdict("encoder", model.id, measured, aim, captured == sizes and is_fast)


def check_prefill(model: Model, device: Device) -> Verdict:
    """Time prefills of lengths that were not seen before, and name the attention kernels."""
    decoder = model.decoder(device)
    engine = new_engine(decoder, 4)
    prompts = requests(decoder, [model.features(device)] * 4, 4)

    @torch.inference_mode()
    def prefill(length: int) -> None:
        engine.prefill(
            [replace(each, prompt_ids=(each.prompt_ids * length)[:length]) for each in prompts], 0
        )

    prefill(3)
    durations = [
        elapsed_ms(partial(prefill, length), device) for length in range(4, 4 + _NUM_LENGTHS)
    ]
    median = statistics.median(durations)
    slowest = max(durations)
    kernels = [
        name for name in _operations(partial(prefill, 5)) if "attention" in name or "flash" in name
    ]
    measured = {
        "median, ms": round(median, 3),
        "slowest, ms": round(slowest, 3),
        "attention": sorted(kernels),
    }
    aim = f"slowest of {_NUM_LENGTHS} lengths <= {_MAX_TAIL:.0f} x median"
    return Verdict("prefill", model.id, measured, aim, slowest <= _MAX_TAIL * median)


def check_step(model: Model, device: Device, bytes_per_s: float) -> Verdict:
    """Time steps by their rows, against what reading the weights and starting the kernels takes."""
    decoder = model.decoder(device)
    make_endless(decoder)
    measured = {
        f"{rows} rows, ms": round(_step_ms(decoder, model, device, [{}] * rows), 3)
        for rows in _ROWS
    }
    num_kernels = sum(_operations(admitted(decoder, model, device, [{}], _NUM_STEPS).step).values())
    weights = (model.folder / "decoder.safetensors").stat().st_size
    limit_ms = max(weights / bytes_per_s, num_kernels * _KERNEL_S) * 1000
    measured |= {"limit, ms": round(limit_ms, 3), "operations": num_kernels}
    aim = f"1 row <= {_MAX_OF_LIMIT:.0f} x limit"
    return Verdict(
        "step", model.id, measured, aim, measured["1 rows, ms"] <= _MAX_OF_LIMIT * limit_ms
    )


def check_sampled_among_greedy(model: Model, device: Device) -> Verdict:
    """Compare steps of 15 greedy rows and a sampled one with those of 16 greedy rows."""
    decoder = model.decoder(device)
    make_endless(decoder)
    greedy: list[dict[str, Any]] = [{}] * 15
    plain = _step_ms(decoder, model, device, [*greedy, {}])
    ratio = (
        _step_ms(decoder, model, device, [*greedy, {"temperature": 1.0, "top_p": 0.9, "seed": 1}])
        / plain
    )
    measured = {"ratio": round(ratio, 3)}
    return Verdict(
        "one sampled row of 16", model.id, measured, f"<= {_MAX_SAMPLED}", ratio <= _MAX_SAMPLED
    )


def check_throughput(model: Model, device: Device, seconds: float, aim: float) -> Verdict:
    """Encode new images and generate answers for `seconds`, as many at once as the slots."""
    encoder = model.encoder(device)
    decoder = model.decoder(device)
    images = model.images(16)
    make_endless(decoder)
    num_images = 0
    start_s = time.monotonic()
    with scheduler(decoder, _IN_FLIGHT) as running:
        pending: set[Future[WrittenSequence]] = set()
        while time.monotonic() - start_s < seconds:
            features = list(encoder.encode(images))
            pending |= set(running.submit(requests(decoder, features, _NUM_TOKENS)))
            num_images += len(images)
            while len(pending) > _IN_FLIGHT:
                _, pending = wait(pending, return_when="FIRST_COMPLETED")
        wait(pending)
    rate = num_images / (time.monotonic() - start_s)
    return Verdict(
        "throughput", model.id, {"images/s": round(rate, 1)}, f">= {aim:.0f}", rate >= aim
    )


def _step_ms(
    decoder: Decoder, model: Model, device: Device, options: Sequence[dict[str, Any]]
) -> float:
    """Return the median duration of a step with a row for each of `options`, in runs of consecutive
    steps.
    """
    batch = admitted(decoder, model, device, options, _NUM_STEPS)

    def steps() -> None:
        for _ in range(_STEPS_AT_ONCE):
            batch.step()

    return statistics.median(
        elapsed_ms(steps, device) / _STEPS_AT_ONCE for _ in range(_NUM_STEPS // _STEPS_AT_ONCE)
    )


def _operations(work: Any) -> Counter[str]:
    """Return how often each kernel ran, without a GPU each operator."""
    has_gpu = torch.cuda.is_available()
    with profile(
        activities=[ProfilerActivity.CUDA if has_gpu else ProfilerActivity.CPU]
    ) as profiled:
        work()
    return Counter({event.key: event.count for event in profiled.key_averages()})
