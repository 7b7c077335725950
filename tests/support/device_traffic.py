"""The traffic between a host and a device without values: torch's `meta`, which fails where a value
would be read.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.decoder.captured_passes import CudaGraph
from runners.decoder.engines import GraphEngine
from runners.decoder.protocol import Decoder

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
            host = (
                args[0]
                if func is torch.ops.aten.copy_.default
                else torch.zeros(args[0].shape, dtype=args[0].dtype)
            )
            self.set_values(host)
            return host
        is_from_host = len(tensors) > len(on_device) and (
            on_device or (func in _COPIES and target.type == "meta")
        )
        if is_from_host:
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
        if (
            func is torch.tensor
            and torch.device((kwargs or {}).get("device") or "cpu").type == "meta"
        ):
            self._traffic.note(self._traffic.to_device, func)
            self._traffic.waits[str(func)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def device_traffic() -> Iterator[DeviceTraffic]:
    with DeviceTraffic() as traffic, NewTensors(traffic):
        yield traffic


def _is_non_blocking(func: Any, args: Any, kwargs: Any) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    place = names.index("non_blocking") if func in _COPIES else len(args)
    return bool(args[place] if place < len(args) else kwargs.get("non_blocking"))


def _is_view(func: Any) -> bool:
    return any(
        output.alias_info is not None and not output.alias_info.is_write
        for output in func._schema.returns
    )


def make_endless(decoder: Decoder) -> None:
    """Remove the rules, so that answers end only at their limit."""
    decoder.rules = replace(
        decoder.rules,
        eos_token_ids=frozenset({-1}),
        forced_eos_token_id=None,
        no_repeat_ngram_size=0,
    )


def graph_engine(decoder: Decoder, num_slots: int) -> GraphEngine:
    """Return an engine as on a GPU, captured by a fake."""
    return GraphEngine(decoder, num_slots, capture_eagerly)


class ReplayedEagerly:
    """A captured pass that computes when it is replayed, and not before."""

    def __init__(self, compute: Callable[[], Tensor]) -> None:
        self._compute = compute
        self._output: Tensor | None = None

    @property
    def output(self) -> Tensor:
        if self._output is None:
            self._output = self._compute().clone()
        return self._output

    def replay(self) -> None:
        result = self._compute()
        if self._output is None:
            self._output = result.clone()
        else:
            self._output.copy_(result)


def capture_eagerly(compute: Callable[[], Tensor]) -> CudaGraph:
    return cast(CudaGraph, ReplayedEagerly(compute))
