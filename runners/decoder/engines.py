"""The engine of each kind of device: another backend is a class and a line here."""

from typing import Any

from runners.decoder.eager_engine import EagerEngine
from runners.decoder.graph_engine import GraphEngine
from runners.decoder.protocol import Decoder, Engine, NewEngine

_ENGINES: dict[str, NewEngine] = {"cuda": GraphEngine}  # keyed by torch's device type


def new_engine(decoder: Decoder, num_slots: int) -> Engine[Any]:
    """Return the engine of a decoder's device, by default the eager one."""
    return _ENGINES.get(decoder.shape.device.type, EagerEngine)(decoder, num_slots)
