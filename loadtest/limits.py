"""What share of the machine's limit our service reaches: the encoder of the matrix rate, a decode step of the memory.

Times are the service's own (`timings_ms`) of one client that sends one request at a time.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.client import Sample
from loadtest.machine import MachineRates
from loadtest.operations import Operations
from loadtest.stands import Stand

_PROMPT_TOKENS = 12  # of the questions, about
_WEIGHT_BYTES = {"float32": 4, "int8": 1}


@dataclass(frozen=True, slots=True)
class Share:
    """A rate that was reached, and what the machine can."""

    model: str
    part: str  # "encoder" or "decode step"
    precision: str
    work: float  # operations or bytes
    measured_s: float
    one_core: float  # share of the limit
    all_cores: float

    @property
    def rate(self) -> float:
        """Operations or bytes per second."""
        return self.work / self.measured_s


def steps_bytes(operations: Operations) -> list[int]:
    """Return the bytes of a step of one sequence behind image and prompt, at each precision of weights."""
    return [_step_bytes(operations, precision) for precision in _WEIGHT_BYTES]


def shares_of(stand: Stand, operations: Operations, rates: Sequence[MachineRates]) -> tuple[Share, ...]:
    """Return the shares of a stand of our service that ran `single`, none of another."""
    samples = [sample for one in stand.rounds.get("single", ()) for sample in one.samples]
    if not samples:
        return ()
    encoder, decoder = (precision_of(stand.precision, part) for part in ("encoder", "decoder"))
    num_bytes = _step_bytes(operations, decoder)
    matrix = [rate.int8_per_s if encoder == "int8" else rate.float32_per_s for rate in rates]
    memory = [rate.step_bytes_per_s[str(num_bytes)] for rate in rates]
    return (
        _share(stand.model, "encoder", encoder, operations.encoder_operations, encode_s(samples), matrix),
        _share(stand.model, "decode step", decoder, num_bytes, step_s(samples), memory),
    )


def precision_of(listed: str, part: str) -> str:
    """Return the precision of a part from what /v1/models says: `int8`, or `encoder int8, decoder float32`."""
    by_part = dict(words.split() for words in listed.split(", ")) if " " in listed else {}
    return by_part.get(part, listed)


def encode_s(samples: Sequence[Sample]) -> float:
    """Return the median time of the encoder."""
    return statistics.median(sample.answer.timings_ms["encode"] for sample in samples) / 1000


def step_s(samples: Sequence[Sample]) -> float:
    """Return the mean time of a token after the first."""
    decode_ms = sum(sample.answer.timings_ms["decode"] for sample in samples)
    return decode_ms / sum(sample.answer.generated_tokens - 1 for sample in samples) / 1000


def _step_bytes(operations: Operations, precision: str) -> int:
    num_positions = operations.num_image_tokens + _PROMPT_TOKENS
    return int(operations.step_bytes(_WEIGHT_BYTES[precision], num_positions))


def _share(model: str, part: str, precision: str, work: float, measured_s: float, limits: Sequence[float]) -> Share:
    reached = work / measured_s
    return Share(model, part, precision, work, measured_s, reached / limits[0], reached / max(limits))
