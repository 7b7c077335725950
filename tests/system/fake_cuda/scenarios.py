"""Runs on the fake card: `python -m tests.system.fake_cuda.scenarios NAME MODEL…` prints JSON.

captures     graphs of an encoder and of a decoder with 64 slots, without adapters and with them,
             and the kernels of some
figures      the host's time and calls, and the device's work, of steps, admissions and batches
order        races, unpinned copies and memory of an encoder and a decoder with 8 slots that serve
small        batches of an encoder with a part of a small card
memory       what follows when an allocation fails, each in turn
lost         a decoder whose device is lost with a code; ends its process
unnoticed    the same, and another error comes first
gpu_check    lines "KIND CHECK" of the check of a GPU, on a right card or a broken one
failed       a decoder in which one product fails and the device does not
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from laboratory.gpu_check.__main__ import parse, plan, run_all
from laboratory.gpu_check.parts import MAX_POSITIONS, Model, requests, scheduler, write
from runners.adapters.low_rank import POOL_RANK, Adapters
from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.captured_passes import capture_cuda_graph
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.features_cache import Encoding
from runners.encoder.session import EncoderWorker
from runners.errors import exit_if_device_lost
from runners.kv_cache import use_decoder_stream
from runners.models.load import load_decoder
from runners.tokens.choice import CAPTURED_KINDS
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.passes import make_endless
from wire.artifacts.adapter_folder import DOWN, UP
from wire.artifacts.manifest import DECODER_FILE

RANK = 4  # of the adapter
_ON_CARD = "tests.system.fake_cuda.cards:run_on_card"
_ALL = 10**6  # allocations
_NUM_STEPS = 300  # timed
_EXECUTION_FAILED = 13  # CUBLAS_STATUS_EXECUTION_FAILED

_COUNTS = (
    *("launches", "captured", "stray", "replays", "preferred", "to_device", "to_host"),
    *("on_device", "waits", "waits_for_all", "events", "allocations", "frees", "pinned"),
    *("captures", "illegal", "races", "pageable", "num_bytes"),
)
_runtime = ctypes.CDLL("libcudart.so.13")


def counts() -> dict[str, int]:
    """Return the counts since the start of the process, in the order of runtime.c."""
    numbers = (ctypes.c_long * len(_COUNTS))()
    _runtime.fake_cuda_counts(numbers)
    return dict(zip(_COUNTS, numbers, strict=True))


def counted(work: Callable[[], object]) -> dict[str, int]:
    before = counts()
    work()
    changes = {name: after - before[name] for name, after in counts().items()}
    return {name: change for name, change in changes.items() if change}


def fail_allocations(first: int, num: int) -> None:
    """Fail `num` allocations of device memory; `first` is 1 for the next one."""
    _runtime.fake_cuda_fail_allocations(ctypes.c_long(first), ctypes.c_long(num))


def captures(model: Model) -> dict[str, Any]:
    """Return the captured sizes of the encoder, and the graphs of a decoder with 64 slots."""
    use_decoder_stream("cuda")
    encoder = _encoder(model)
    batch = [Encoding(image, None) for image in model.images(3)]
    encoded = counted(lambda: encoder.encode(batch))
    freed = counted(batch.clear)
    engine: Any = LiveBatch(model.decoder("cuda"), 64)._engine
    with_adapters: Any = LiveBatch(_decoder_with_adapter(model), 64)._engine
    graphs = engine.graphs
    more_graphs = with_adapters.graphs
    choose = partial(graphs._store_choice, False, 1, CAPTURED_KINDS[0])
    return {
        "encoder": encoder._encoder.captured_sizes,
        "batch of 3": encoded,
        "freed features": freed,
        "decoder": len(graphs._steps) + len(graphs._choices),
        "decoder with adapters": len(more_graphs._steps) + len(more_graphs._choices),
        "prefills": [len(engine.prefills._graphs), len(with_adapters.prefills._graphs)],
        "kernels of a step": _kernels_of_step(graphs),
        "kernels of a step with adapters": _kernels_of_step(more_graphs),
        "kernels of a choice": _num_captured(choose),
        "stray": counts()["stray"],
        "illegal": counts()["illegal"],
    }


def _kernels_of_step(graphs: Any) -> int:
    return _num_captured(partial(graphs._store_logits, next(iter(graphs._steps))))


def _num_captured(compute: Callable[[], torch.Tensor]) -> int:
    return counted(partial(capture_cuda_graph, compute))["captured"]


def figures(model: Model) -> dict[str, Any]:
    """Return figures of a step by its rows, and of an admission that one adapter joins."""
    use_decoder_stream("cuda")
    decoder = _decoder_with_adapter(model)
    make_endless(decoder)
    batch = LiveBatch(decoder, 64)
    constraint = decoder.text.constraints.get("start: <[0-5]>*")
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "constrained": {"constraint": constraint},
        "adapter": {"adapter": "tuned"},
    }
    result: dict[str, Any] = {}
    for (kind, options), num_rows in product(kinds.items(), (1, 64)):
        _admit(batch, model, [options] * num_rows)
        result[f"step of {num_rows}, {kind}"] = _step_figures(batch)
        batch.clear()
    mixed = [kinds["plain"]] * 7 + [kinds["adapter"]]
    _admit(batch, model, mixed)
    batch.clear()
    result["admission of 8, 1 with an adapter"] = counted(lambda: _admit(batch, model, mixed))
    return result


def _admit(batch: LiveBatch, model: Model, options: Sequence[dict[str, Any]]) -> None:
    decoder = batch._engine._decoder
    size = model.manifest.num_image_tokens, model.manifest.hidden_size
    features = torch.zeros(size, device="cuda")
    sequences = []
    for changes in options:
        request = SequenceRequest(features, decoder.text.prompt_ids([("abc", False)]), 1000)
        sequences.append(start_sequence(replace(request, **changes), decoder.rules))
    batch.admit(sequences)


def _step_figures(batch: LiveBatch) -> dict[str, Any]:
    """Return the median time of the thread, the calls of functions and the device's work."""
    for _ in range(5):
        batch.step()
    times_s = []
    for _ in range(_NUM_STEPS):
        start_s = time.thread_time()
        batch.step()
        times_s.append(time.thread_time() - start_s)
    device = counted(batch.step)
    calls = num_calls(batch.step)
    assert all(sequence.error is None for sequence in batch.slots.of)
    return {"host ms": round(1000 * statistics.median(times_s), 3), "calls": calls, **device}


def num_calls(work: Callable[[], object]) -> int:
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


def order(model: Model) -> dict[str, Any]:
    """Serve with encoder and decoder; return the work, and the memory of captures."""
    early = torch.ones(4, device="cuda").clone()  # in the default stream
    use_decoder_stream("cuda")
    early.clone()
    encoder = _encoder(model)
    decoder = model.decoder("cuda")
    make_endless(decoder)
    constraint = decoder.text.constraints.get("start: <[0-5]>*")
    images = model.images(3)
    batches: list[LiveBatch] = []
    captured = counted(lambda: batches.append(LiveBatch(decoder, 8)))
    (batch,) = batches

    def staged(first_place: int) -> list[Encoding]:
        encodings = []
        for place, image in enumerate(images, first_place):
            encoding = Encoding(image, None, place=place)
            encoder.stage(encoding).result()  # replaced before it is encoded
            encoding.staged = encoder.stage(encoding)
            encoding.staged.result()
            encodings.append(encoding)
        return encodings

    def serve() -> None:
        first, second = staged(0), staged(3)
        encoder.encode(first)
        assert not encoder._encoder._copied[5].query(), "a batch waits for the next one's images"
        encoder.encode(second)
        features: list[Any] = [encoding.features for encoding in first + second]
        pending = requests(decoder, features, 12)
        pending[1] = replace(pending[1], temperature=1.0, top_p=0.9, seed=1)
        pending[2] = replace(pending[2], constraint=constraint)
        pending[3] = replace(pending[3], num_beams=2)
        long = replace(pending[0], prompt_ids=(pending[0].prompt_ids * 100)[:100])  # runs eagerly
        for admitted in (pending, [long]):
            batch.admit([start_sequence(request, decoder.rules) for request in admitted])
        for _ in range(3):
            batch.step()
        batch.slots.by_slot[0].finish_reason = "stop"
        batch.remove_ended()  # while a pass is in flight, which must not be awaited
        batch.step()
        batch.clear()

    def reload() -> None:
        """Load tokens twice, as after an error before their choice."""
        graphs: Any = batch._engine
        graphs.decode([[5]] * 6)
        graphs.decode([[6]] * 6)
        torch.cuda.synchronize()

    serve()
    served = counted(serve)
    reload()
    with scheduler(decoder, 2) as running:
        pending = requests(decoder, [model.features()], 2)
        scheduled = counted(lambda: write(running, pending))
    return {
        "served": served,
        "scheduled": scheduled,
        "races": counts()["races"],
        "captured": captured,
    }


def small(model: Model) -> dict[str, Any]:
    """Load encoders as runners do; return their batches, by the number of runners on the card."""
    sizes = {}
    for num_sharing in (1, 4):
        sizes[str(num_sharing)] = _encoder(model, num_sharing)._encoder.sizes
    return sizes


def _encoder(model: Model, num_sharing: int = 1) -> Any:
    options = runner_options(model.id, Settings(device="cuda"), ())
    options = replace(options, num_sharing_gpu=num_sharing)
    worker = EncoderWorker(model.manifest, options, "cuda")
    worker.load(model.folder, 1)
    return worker


def unnoticed(_model: Model, code: str) -> dict[str, Any]:
    """Lose the device, which no call has noticed, before another error."""
    torch.zeros(1, device="cuda")
    _runtime.fake_cuda_lose_device(int(code))
    exit_if_device_lost(RuntimeError("another error"), "the decoder of a test")
    return {}


def memory(model: Model) -> dict[str, Any]:
    """Fail allocations of the start and of serving; return outcomes and memory in use."""
    decoder = model.decoder("cuda")
    make_endless(decoder)
    starts = {}
    for first, num in ((1, 1), (2, _ALL), (9, 1), (30, _ALL), (70, 1), (100, _ALL), (200, _ALL)):
        starts[f"{num} from {first}"] = _start(model, decoder, first, num)
    served = {}
    with scheduler(decoder, 8) as running:
        pending = requests(decoder, [model.features()] * 8, 6)
        write(running, pending)
        torch.cuda.empty_cache()
        idle_bytes = counts()["num_bytes"]
        for first, num in product(range(1, 9), (1, _ALL)):
            fail_allocations(first, num)
            outcomes = [_outcome(future.result) for future in running.submit(pending)]
            fail_allocations(0, 0)
            write(running, pending)
            torch.cuda.empty_cache()
            served[f"{num} from {first}"] = outcomes
        after_bytes = counts()["num_bytes"]
    return {"starts": starts, "served": served, "idle": idle_bytes, "after": after_bytes}


def lost(model: Model, code: str) -> dict[str, Any]:
    """Lose the device while a decoder serves; the process should not return."""
    decoder = model.decoder("cuda")
    with scheduler(decoder, 2) as running:
        pending = requests(decoder, [model.features()], 8)
        write(running, pending)
        _runtime.fake_cuda_lose_device(int(code))  # every later call fails
        return {"outcome": _outcome(lambda _: write(running, pending))}


def failed(model: Model) -> dict[str, Any]:
    """Fail a product once while a decoder serves; return the outcomes then and afterwards."""
    decoder = model.decoder("cuda")
    with scheduler(decoder, 2) as running:
        (request,) = requests(decoder, [model.features()], 8)
        # too long for a captured prefill, whose products are replayed
        long = [replace(request, prompt_ids=(request.prompt_ids * 100)[:100])]
        # after cuBLASLt torch tries cuBLAS
        _runtime.fake_cuda_fail_library(_EXECUTION_FAILED, 2)
        outcomes = [_outcome(lambda _: write(running, long)) for _ in range(2)]
    return {"outcomes": outcomes}


def gpu_check(model: Model, *lines: str) -> dict[str, Any]:
    """Run checks of this model, or that of the service with both; return their verdicts."""
    arguments = parse([model.id, "paligemma-mini", "--seconds", "6"])
    by_name = {check.name: check for check in reversed(plan(arguments))}
    checks = []
    for line in lines:
        kind, _, name = line.partition(" ")
        check = by_name[name]
        values = kind, check.function, *check.arguments
        checks.append(replace(check, function=_ON_CARD, arguments=values))
    with TemporaryDirectory() as folder:
        report = Path(folder, "report")
        run_all(checks, report)
        verdicts = map(json.loads, report.read_text().splitlines())
        return dict(zip(lines, verdicts, strict=True))


_SCENARIOS: dict[str, Callable[..., dict[str, Any]]] = {
    scenario.__name__: scenario
    for scenario in (captures, figures, order, small, memory, lost, unnoticed, failed, gpu_check)
}


def _decoder_with_adapter(model: Model) -> Decoder:
    """Return a decoder with an adapter of all linear layers but the head."""
    adapters = Adapters("cuda")
    precision = model.manifest.precision["cuda"]["decoder"]
    decoder = load_decoder(
        model.folder,
        model.manifest.family,
        precision,
        "cuda",
        MAX_POSITIONS,
        adapters=adapters,
        num_image_tokens=model.manifest.num_image_tokens,
    )
    adapters.open_pool(POOL_RANK, _ALL * 1000)
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(model.folder / DECODER_FILE, framework="pt") as file:
        for name in list(file.keys()):
            layer = name.removesuffix(".weight")
            if layer != name and layer.endswith(("_proj", "fc1", "fc2")):
                num_out, num_in = file.get_slice(name).get_shape()
                tensors[layer + DOWN] = torch.zeros(RANK, num_in)
                tensors[layer + UP] = torch.zeros(num_out, RANK)
    adapters.add("tuned", tensors)
    return decoder


def _start(model: Model, decoder: Decoder, first: int, num: int) -> str:
    """Start encoder and batch with allocations that fail; return what becomes of it."""
    torch.cuda.empty_cache()
    fail_allocations(first, num)
    outcome = _outcome(lambda _: (model.encoder("cuda"), LiveBatch(decoder, 8)))
    fail_allocations(0, 0)
    gc.collect()  # graphs that are freed during a later capture would end it
    return outcome


def _outcome(work: Callable[[float], object]) -> str:
    """Return "answered", or the kind of the error; raise `TimeoutError` after a minute."""
    try:
        work(60.0)
    except TimeoutError:
        raise
    except Exception as error:
        return "out of memory" if "memory" in str(error).lower() else repr(error)
    return "answered"


if __name__ == "__main__":
    name, model_id, *arguments = sys.argv[1:]
    print(json.dumps(_SCENARIOS[name](Model.of(model_id), *arguments)))
