"""Graphs, launches, copies and waits of an encoder and a decoder with 64 slots."""

import os
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.profiler import ProfilerActivity, profile

from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.captured_passes import capture_cuda_graph
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.features_cache import Encoding
from runners.encoder.session import EncoderWorker
from runners.kv_cache import use_decoder_stream
from runners.tokens.choice import CAPTURED_KINDS
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.gpu.card import Card
from tests.gpu.counts import counted, counts
from tests.gpu.models import Model
from tests.support.export_cli import EMBEDDED
from tests.support.passes import make_endless
from wire.artifacts.adapter_folder import DOWN, UP
from wire.artifacts.manifest import DECODER_FILE

pytestmark = pytest.mark.gpu

NUM_SLOTS = 64
# Graphs of a decoder, without and with adapters; the most kernels of a step, likewise.
NUM_GRAPHS = {"florence-2-mini": (104, 152), "paligemma-mini": (77, 98)}
MAX_KERNELS = {"florence-2-mini": (89, 185), "paligemma-mini": (141, 247)}
MAX_CHOICE_KERNELS = 32
NUM_PREFILLS = [16, 32]
MAX_ADMISSION_LAUNCHES = 1
STEP = {"launches": 1, "replays": 2, "to_device": 1, "to_host": 1, "waits": 1}
# of 8 sequences: parts of 4, 2, 1 and 1, and the choice
ADMISSION = {"replays": 5, "to_device": 5, "to_host": 1, "waits": 1}
NUM_STEPS = 300  # timed
RANK = 4  # of the adapter
POOL_BYTES = 10**9
# The counts that a profile has, by the beginnings of its events' names; the profiler itself waits
# for the device.
EVENTS = {
    "launches": ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemsetAsync"),
    "replays": ("cudaGraphLaunch",),
    "to_device": ("Memcpy HtoD",),
    "to_host": ("Memcpy DtoH",),
    "waits": ("cudaStreamSynchronize", "cudaEventSynchronize"),
    "pageable": ("Memcpy HtoD (Pageable", "Memcpy DtoH (Device -> Pageable"),
}


def new_encoder(model: Model, num_sharing: int = 1) -> Any:
    """Load the encoder of a runner, one of so many on the card."""
    options = runner_options(model.manifest.model_id, Settings(device="cuda"), ())
    options = replace(options, num_sharing_gpu=num_sharing)
    worker = EncoderWorker(model.manifest, options, "cuda")
    worker.load(model.folder, 1)
    return worker


def decoder_with_adapter(model: Model) -> Decoder:
    """Load the decoder with "tuned", an adapter of its linear layers."""
    adapters = Adapters("cuda")
    decoder = model.decoder(adapters=adapters)
    adapters.open_pool(POOL_RANK, POOL_BYTES)
    tensors = {}
    for layer, (num_out, num_in) in linear_layers(model.folder, ("_proj", "fc1", "fc2")).items():
        tensors[layer + DOWN] = torch.zeros(RANK, num_in)
        tensors[layer + UP] = torch.zeros(num_out, RANK)
    adapters.add("tuned", tensors)
    return decoder


def linear_layers(artifacts: Path, ends: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the shapes (out, in) of a decoder's layers whose names end so."""
    shapes = {}
    with safe_open(artifacts / DECODER_FILE, framework="pt") as file:
        for name in list(file.keys()):
            layer = name.removesuffix(".weight")
            if layer != name and layer.endswith(ends):
                shapes[layer] = file.get_slice(name).get_shape()
    return shapes


def captures(model: Model) -> dict[str, Any]:
    """Return the captured sizes of the encoder, and the graphs of a decoder, without adapters and
    with them.
    """
    use_decoder_stream("cuda")
    engine: Any = LiveBatch(model.decoder(), NUM_SLOTS)._engine
    with_adapters: Any = LiveBatch(decoder_with_adapter(model), NUM_SLOTS)._engine
    num_graphs = []
    for graphs in (engine.graphs, with_adapters.graphs):
        num_graphs.append(len(graphs._steps) + len(graphs._choices))
    return {
        "encoder": new_encoder(model)._encoder.captured_sizes,
        "decoders": num_graphs,
        "prefills": [len(engine.prefills._graphs), len(with_adapters.prefills._graphs)],
    }


@pytest.mark.long
@pytest.mark.parametrize("model_id", EMBEDDED)
def test_passes_are_captured(card: Card, model_id: str) -> None:
    result = card.run(captures, model_id)
    assert result["encoder"] == [16, 8, 4, 2, 1]
    assert tuple(result["decoders"]) == NUM_GRAPHS[model_id]
    assert result["prefills"] == NUM_PREFILLS


def kernels(model: Model) -> dict[str, Any]:
    """Return the kernels of some graphs, and the work of an encoder's batch."""
    use_decoder_stream("cuda")
    encoder = new_encoder(model)
    batch = [Encoding(image, None) for image in model.images(3)]
    encoded = counted(lambda: encoder.encode(batch))
    freed = counted(batch.clear)
    engine: Any = LiveBatch(model.decoder(), NUM_SLOTS)._engine
    with_adapters: Any = LiveBatch(decoder_with_adapter(model), NUM_SLOTS)._engine
    choose = partial(engine.graphs._store_choice, False, 1, CAPTURED_KINDS[0])
    return {
        "batch of 3": encoded,
        "freed features": freed,
        "steps": [_num_kernels_of_step(engine), _num_kernels_of_step(with_adapters)],
        "choice": _num_captured(choose),
        "stray": counts()["stray"],
        "illegal": counts()["illegal"],
    }


def _num_kernels_of_step(engine: Any) -> int:
    graphs = engine.graphs
    return _num_captured(partial(graphs._store_logits, next(iter(graphs._steps))))


def _num_captured(compute: Callable[[], torch.Tensor]) -> int:
    return counted(partial(capture_cuda_graph, compute))["captured"]


@pytest.mark.long
@pytest.mark.parametrize("model_id", EMBEDDED)
def test_captured_passes_have_few_kernels(fake_card: Card, model_id: str) -> None:
    result = fake_card.run(kernels, model_id)
    for num, limit in zip(result["steps"], MAX_KERNELS[model_id], strict=True):
        assert 0 < num <= limit
    assert 0 < result["choice"] <= MAX_CHOICE_KERNELS
    assert (result["stray"], result["illegal"]) == (0, 0)
    batch = result["batch of 3"]
    assert batch["replays"] == 2
    assert not {"waits_for_all", "races"} & batch.keys(), "it waits for the decoder's work"
    assert result["freed features"] == {"events": 3}, "the decoder may still read them"


def figures(model: Model) -> dict[str, Any]:
    """Return figures of a step by its rows, and of an admission that one adapter joins."""
    use_decoder_stream("cuda")
    decoder = decoder_with_adapter(model)
    make_endless(decoder)
    batch = LiveBatch(decoder, NUM_SLOTS)
    features = model.features()
    constraint = decoder.text.constraints.get("start: <[0-5]>*")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "constrained": {"constraint": constraint},
        "adapter": {"adapter": "tuned"},
    }
    steps = {}
    for (kind, options), num_rows in product(kinds.items(), (1, NUM_SLOTS)):
        _admit(batch, features, [options] * num_rows)
        steps[f"{num_rows} rows, {kind}"] = _step_figures(batch)
        batch.clear()
    mixed = [kinds["plain"]] * 7 + [kinds["adapter"]]
    _admit(batch, features, mixed)
    batch.clear()
    return {"steps": steps, "admission": work_of(lambda: _admit(batch, features, mixed))}


def _admit(batch: LiveBatch, features: torch.Tensor, options: Sequence[dict[str, Any]]) -> None:
    decoder = batch._engine._decoder
    request = SequenceRequest(features, decoder.text.prompt_ids([("abc", False)]), 1000)
    sequences = []
    for changes in options:
        sequences.append(start_sequence(replace(request, **changes), decoder.rules))
    batch.admit(sequences)


def _step_figures(batch: LiveBatch) -> dict[str, Any]:
    """Return the median time of the thread, the calls of functions and the device's work."""
    for _ in range(5):
        batch.step()
    times_s = []
    for _ in range(NUM_STEPS):
        start_s = time.thread_time()
        batch.step()
        times_s.append(time.thread_time() - start_s)
    device = work_of(batch.step)
    calls = _num_calls(batch.step)
    assert all(sequence.error is None for sequence in batch.slots.of)
    return {"host ms": round(1000 * statistics.median(times_s), 3), "calls": calls, **device}


def _num_calls(work: Callable[[], object]) -> int:
    """Return how many functions, of Python and of C, `work` calls."""
    num = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal num
        num += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return num


def work_of(work: Callable[[], object]) -> dict[str, int]:
    """Return what the device is asked for; on a card, by torch's profiler."""
    if "FAKE_CUDA" in os.environ:
        return counted(work)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
    return count_events({event.key: event.count for event in profiled.key_averages()})


def count_events(events: Mapping[str, int]) -> dict[str, int]:
    """Return the counts of a profile, by name."""
    numbers = Counter[str]()
    for event, num in events.items():
        for name, beginnings in EVENTS.items():
            if event.startswith(beginnings):
                numbers[name] += num
    return dict(numbers)


@pytest.mark.long
@pytest.mark.parametrize("model_id", EMBEDDED)
def test_steps_and_admissions_need_little_work(card: Card, model_id: str) -> None:
    result = card.run(figures, model_id)
    for name, step in result["steps"].items():
        assert step == step | STEP, name
        assert "pageable" not in step, name
    admission = result["admission"]
    assert admission == admission | ADMISSION
    assert admission.get("launches", 0) <= MAX_ADMISSION_LAUNCHES
    assert not {"pageable", "waits_for_all"} & admission.keys()


def test_events_of_a_profile_are_counted() -> None:
    events = {
        "cudaGraphLaunch": 2,
        "cudaLaunchKernelExC": 1,
        "Memcpy HtoD (Pinned -> Device)": 1,
        "Memcpy DtoH (Device -> Pageable)": 1,
        "cudaEventSynchronize": 1,
        "cudaDeviceSynchronize": 1,  # of the profiler
        "Memset (Device)": 1,
    }
    assert count_events(events) == STEP | {"pageable": 1}
