"""The share of the machine's limits that our service reaches, and the share of a decode step
outside the model.

The vision encoder is compared with the rate of matrix products, a decode step with that of memory.
Times are from `timings_ms`, of one client that sends one request at a time. Decode steps alone are
measured by `python -m laboratory.bench.steps`.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from laboratory.bench.machine import MachineRates
from laboratory.bench.operations import Operations
from laboratory.bench.rounds.measurement import Measurement
from loadtest.processes import ROOT

_PROMPT_TOKENS = 12  # approximate length of the questions
_WEIGHT_BYTES = {"float32": 4, "int8": 1}
_STEPS_TIMEOUT_S = 300


@dataclass(frozen=True, slots=True)
class Share:
    """The rate of one part of a model, and its share of the machine's limit."""

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


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Mean times of a decode step of `num_sequences` sequences, with one thread."""

    model: str
    num_sequences: int
    num_steps: int
    step_s: float  # from token to token, for a client of the scheduler
    model_s: float  # part of `step_s` in the model

    @property
    def overhead(self) -> float:
        """Share of a step outside the model: choice of tokens, constraints, scheduler."""
        return 1 - self.model_s / self.step_s


def steps_bytes(operations: Operations) -> list[int]:
    """Return a step's bytes for one sequence after its prompt, at each weight precision."""
    return [_step_bytes(operations, precision) for precision in _WEIGHT_BYTES]


def shares_of(
    measurement: Measurement, operations: Operations, rates: Sequence[MachineRates]
) -> tuple[Share, ...]:
    """Return the shares that our service reaches; none if it did not run `single`."""
    rounds = measurement.rounds.get("single", ())
    samples = list(chain.from_iterable(one.samples for one in rounds))
    if not samples:
        return ()
    encoder = precision_of(measurement.precision, "encoder")
    decoder = precision_of(measurement.precision, "decoder")
    num_bytes = _step_bytes(operations, decoder)
    products = [rate.int8_per_s if encoder == "int8" else rate.float32_per_s for rate in rates]
    memory = [rate.step_bytes_per_s[str(num_bytes)] for rate in rates]
    encode_s = statistics.median(sample.answer.timings_ms["encode"] for sample in samples) / 1000
    # the mean time of a token after the first
    decode_s = sum(sample.answer.timings_ms["decode"] for sample in samples) / 1000
    step_s = decode_s / sum(sample.answer.generated_tokens - 1 for sample in samples)
    model = measurement.model
    return (
        _share(model, "encoder", encoder, operations.encoder_operations, encode_s, products),
        _share(model, "decode step", decoder, num_bytes, step_s, memory),
    )


def precision_of(listed: str, part: str) -> str:
    """Return a part's precision from /v1/models: `int8` or `encoder int8, decoder float32`."""
    by_part = dict(words.split() for words in listed.split(", ")) if " " in listed else {}
    return by_part.get(part, listed)


def measure_steps(model_id: str, folder: Path) -> tuple[StepTimes, ...]:
    """Measure decode steps of a model in the bench's store."""
    run = subprocess.run(
        [sys.executable, "-m", "laboratory.bench.steps", model_id],
        cwd=ROOT,
        env=os.environ | {"BENTOML_HOME": str(folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=_STEPS_TIMEOUT_S,
        check=True,
    )
    return tuple(StepTimes(**row) for row in json.loads(run.stdout))


def _step_bytes(operations: Operations, precision: str) -> int:
    num_positions = operations.num_image_tokens + _PROMPT_TOKENS
    return int(operations.step_bytes(_WEIGHT_BYTES[precision], num_positions))


def _share(
    model: str, part: str, precision: str, work: float, measured_s: float, limits: Sequence[float]
) -> Share:
    rate = work / measured_s
    return Share(model, part, precision, work, measured_s, rate / limits[0], rate / max(limits))
