"""Transfers, waits and launches of a decode step, on a device without values: torch's `meta`, which
fails where a value would be read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.captured_passes import CudaGraph, NoEvent
from runners.decoder.engines import GraphEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.export_cli import ModelStore
from tests.support.passes import make_endless
from wire.artifacts.manifest import read_manifest

_COPIES = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)


class DeviceTraffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts transfers between host and `meta`, those that wait, and the operations on `meta`,
    views excepted.

    A transfer to the host gives what `set_values` writes, by default zeros. While `is_capturing`,
    transfers and tensors of the host fail: a CUDA graph cannot contain them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.to_device: Counter[str] = Counter()
        self.to_host: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.is_capturing = False
        self.set_values: Callable[[Tensor], object] = Tensor.zero_

    @property
    def num_transfers(self) -> int:
        return self.to_device.total() + self.to_host.total()

    def clear(self) -> None:
        for counter in (self.to_device, self.to_host, self.operations, self.waits):
            counter.clear()

    def capture(self, compute: Callable[[], Tensor]) -> CudaGraph:
        """Compute once, as a capture does; replays do nothing."""
        compute()  # the warm-up, which may copy constants to the device
        self.is_capturing = True
        try:
            return CudaGraph(lambda: None, compute())
        finally:
            self.is_capturing = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # composite operations arrive whole in inference mode
            if (result := func.decompose(*args, **kwargs)) is not NotImplemented:
                return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in tensors if tensor.device.type == "meta"]
        target = torch.device(
            kwargs.get("device") or (args[0].device if func in _COPIES else "cpu")
        )
        if func is torch.ops.aten._local_scalar_dense.default and on_device:
            self.note(self.to_host, func)
            self.waits[str(func)] += 1
            return 0
        if func in _COPIES and on_device and target.type == "cpu":
            self.note(self.to_host, func)
            self.waits[str(func)] += not _is_non_blocking(func, args, kwargs)
            is_new = func is not torch.ops.aten.copy_.default
            host = torch.zeros(args[0].shape, dtype=args[0].dtype) if is_new else args[0]
            self.set_values(host)
            return host
        is_to_device = on_device or (func in _COPIES and target.type == "meta")
        if is_to_device and len(tensors) > len(on_device):
            self.note(self.to_device, func)
            self.waits[str(func)] += not _is_non_blocking(func, args, kwargs)
        elif on_device and not _is_view(func):
            self.operations[str(func)] += not self.is_capturing
        return func(*args, **kwargs)

    def note(self, transfers: "Counter[str]", func: Any) -> None:
        assert not self.is_capturing, f"a captured step must not use the host: {func}"
        transfers[str(func)] += 1


class NewTensors(TorchFunctionMode):
    """Notes the copy to the device of `torch.tensor`, which hides it from a dispatch mode."""

    def __init__(self, traffic: DeviceTraffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = torch.device(kwargs.get("device") or "cpu")
        if func is torch.tensor and device.type == "meta":
            self._traffic.note(self._traffic.to_device, func)
            self._traffic.waits[str(func)] += 1
        return func(*args, **kwargs)


def _is_non_blocking(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("non_blocking") if func in _COPIES else len(args)
    return bool(args[place] if place < len(args) else kwargs.get("non_blocking"))


def _is_view(func: Any) -> bool:
    return any(
        output.alias_info is not None and not output.alias_info.is_write
        for output in func._schema.returns
    )


@pytest.fixture(scope="module")
def traffic() -> Iterator[DeviceTraffic]:
    with DeviceTraffic() as traffic, NewTensors(traffic):
        yield traffic


@dataclass
class LoggedEvent(NoEvent):
    """The event after a copy of results, with the log of the passes that were launched before and
    after it.
    """

    log: list[str]

    def record(self) -> None:
        self.log.append("copy")

    def synchronize(self) -> None:
        self.log.append("wait")


@dataclass(frozen=True)
class MetaEngine:
    """An engine on `meta`, whose captures take seconds; their launches are logged."""

    decoder: Decoder
    engine: GraphEngine
    log: list[str]
    hidden_size: int

    @classmethod
    def capture(cls, artifacts: Path, traffic: DeviceTraffic) -> Self:
        manifest = read_manifest(artifacts)
        max_positions = manifest.num_image_tokens + 32  # few, too
        decoder = load_decoder(artifacts, manifest.family, "float32", "meta", max_positions)
        make_endless(decoder)
        log: list[str] = []
        captured: list[Tensor] = []

        def capture(compute: Callable[[], Tensor]) -> CudaGraph:
            output = traffic.capture(compute).output
            captured.append(output)
            name = "pass" if output.shape[1] == decoder.shape.num_tokens else "choice"
            return CudaGraph(lambda: log.append(name), output)

        traffic.set_values = Tensor.zero_
        engine = GraphEngine(decoder, NUM_SLOTS, capture)
        assert len(captured) == engine.graphs.num_captured + engine.prefills.num_captured
        engine.graphs.results_copied = LoggedEvent(log)
        return cls(decoder, engine, log, manifest.hidden_size)

    def batch(self, num: int, num_steps: int, **options: Any) -> LiveBatch:
        """Return a new batch with `num` sequences."""
        features = torch.zeros(16, self.hidden_size, device="meta")
        prompt_ids = self.decoder.text.prompt_ids([("abc", False)])
        request = SequenceRequest(features, prompt_ids, num_steps + 4, **options)
        batch = LiveBatch(self.decoder, NUM_SLOTS, lambda *_: self.engine)
        batch.admit([start_sequence(request, self.decoder.rules) for _ in range(num)])
        return batch


@pytest.fixture(scope="module")
def engine_of(exported: ModelStore, traffic: DeviceTraffic) -> Callable[[str], MetaEngine]:
    return cache(lambda model_id: MetaEngine.capture(exported.newest(model_id), traffic))


@pytest.fixture
def florence(engine_of: Callable[[str], MetaEngine]) -> MetaEngine:
    """The engine of one model: the order of passes is the same for both."""
    return engine_of("florence-2-mini")


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "top_p": 0.9, "seed": 1},
    "constrained": {},
    "3 beams": {"num_beams": 3},
}
# The lengths of the slots; of beams also their moves.
OPERATIONS = {"greedy": 1, "sampled": 1, "constrained": 1, "3 beams": 3}


NUM_SEQUENCES = 3
NUM_SLOTS = 3 + 3 * NUM_SEQUENCES  # each beam has one; few, for few captures
CASES = [
    *(("florence-2-mini", name) for name in OPTIONS),
    ("paligemma-mini", "greedy"),  # what is chosen, and how, is the engine's
    ("paligemma-mini", "3 beams"),
]


@pytest.fixture(params=CASES, ids=" ".join)
def admitted(
    engine_of: Callable[[str], MetaEngine], traffic: DeviceTraffic, request: pytest.FixtureRequest
) -> LiveBatch:
    """A batch of `NUM_SEQUENCES`."""
    model_id, name = request.param
    engine = engine_of(model_id)
    options = OPTIONS[name]
    if name == "constrained":
        options = {"constraint": engine.decoder.text.constraints.get("start: <[0-5]>*")}
    traffic.set_values = Tensor.zero_
    return engine.batch(NUM_SEQUENCES, 8, **options)


def test_an_admission_waits_for_its_first_tokens_only(
    admitted: LiveBatch, traffic: DeviceTraffic
) -> None:
    engine: Any = admitted._engine
    requests = [replace(one.request) for one in admitted.slots.of]
    rules = admitted.slots.by_slot[0].rules
    admitted.clear()
    traffic.clear()
    admitted.admit([start_sequence(one, rules) for one in requests])
    assert traffic.waits.total() == 0, "only the event of the results may wait"
    assert traffic.to_host.total() == 1
    assert all(map(engine.captures, requests))
    copies_beams = engine.cache.prefixes is None and requests[0].num_beams > 1
    # parts of 2 and 1, then their choice; the slots of copied beams
    assert traffic.to_device.total() == 3 + copies_beams, traffic.to_device
    most = NUM_SEQUENCES + 1 + 2 * copies_beams
    assert traffic.operations.total() <= most, "more than copies of features and beams, and lengths"


def test_a_step_waits_once_for_its_device(
    admitted: LiveBatch, traffic: DeviceTraffic, request: pytest.FixtureRequest
) -> None:
    """Outside of its graphs a step needs few transfers, of which one waits, and few operations, for
    all rows.
    """
    _, name = request.node.callspec.params["admitted"]
    for token_id in range(1, 6):
        traffic.set_values = partial(set_results, token_id)
        traffic.clear()
        admitted.step()
        if token_id > 1:  # the first tokens are those of the prefill
            assert traffic.to_host.total() == 1
            assert traffic.waits.total() == 0, "only the event of the results may wait"
            assert traffic.num_transfers == 2, (traffic.to_device, traffic.to_host)
            assert traffic.operations.total() == OPERATIONS[name], traffic.operations
    live = list(admitted.slots.of)
    assert [sequence.error for sequence in live] == [None] * NUM_SEQUENCES
    assert set(chain.from_iterable(sequence.last_token_ids for sequence in live)) == {5}


def after_first_step(engine: MetaEngine, traffic: DeviceTraffic, num: int, num_steps: int) -> Any:
    """Return a batch after its first step, and the log of its later ones."""
    traffic.set_values = Tensor.zero_
    batch = engine.batch(num, num_steps)
    engine.log.clear()
    traffic.set_values = partial(set_results, 7)
    batch.step()
    return batch, engine.log


def test_the_next_pass_is_launched_before_the_results_are_awaited(
    florence: MetaEngine, traffic: DeviceTraffic
) -> None:
    batch, log = after_first_step(florence, traffic, 3, 8)
    assert log == ["pass", "choice", "copy", "pass", "wait"]
    for _ in range(4):
        log.clear()
        batch.step()
        assert log == ["choice", "copy", "pass", "wait"]
    assert [len(sequence.token_ids) for sequence in batch.slots.of] == [6] * 3


def test_no_pass_is_launched_that_is_certainly_superfluous(
    florence: MetaEngine, traffic: DeviceTraffic
) -> None:
    batch, log = after_first_step(florence, traffic, 2, 0)  # 4 tokens each, of which 2 are written
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "pass", "wait"]
    log.clear()
    batch.step()
    assert log == ["choice", "copy", "wait"]
    assert len(batch.remove_ended()) == 2


def test_freeing_slots_waits_for_nothing(florence: MetaEngine, traffic: DeviceTraffic) -> None:
    """A transfer would wait for the pass in flight.

    The last sequence moves into the freed slot on the device.
    """
    batch, log = after_first_step(florence, traffic, 5, 8)
    for slot in (1, 0):
        batch.slots.by_slot[slot].finish_reason = "stop"
        traffic.clear()
        log.clear()
        batch.remove_ended()
        assert (traffic.waits.total(), traffic.num_transfers, log) == (0, 0, [])
    batch.step()
    assert [len(sequence.token_ids) for sequence in batch.slots.of] == [3] * 3


def set_results(token_id: int, results: Tensor) -> None:
    """Write results (R, 2 + 4 K + 1): all tokens and candidates are `token_id`, certainly."""
    results.zero_()
    results[:, 0] = token_id
    results[:, 2 : 2 + (results.shape[1] - 3) // 4] = token_id
