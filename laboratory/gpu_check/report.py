"""Verdicts, what to try where an aim is missed, and the line for an issue."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KERNELS = "kernel names"
HOST = "host"  # libraries, and the state of the card
_ONLY_IN_REPORT = (KERNELS, HOST)
_FIGURES = {
    "encoder": ("images, ms",),
    "step": ("rows, ms",),
    "throughput": ("images/s",),
    "service": ("requests/s", "p50, ms", "p95, ms"),
}
_TO_TRY = {
    "devices": "see `log`; the driver must be 580 or later; `rm -r build/gpu` and check again",
    "features": "set DIPTYCH_ENCODER_PRECISION=float32, and report it with this file",
    "tokens": "few differences are rounding; many: set DIPTYCH_DECODER_PRECISION=float32",
    "encoder": "see `log` for sizes without CUDA graphs; export the model again",
    "prefill": "other processes on the card? `host` has clocks and processes",
    "step": "see `log` for steps without CUDA graphs; other processes on the card?",
    "throughput": "see the checks before it: the slowest part limits it",
    "service": "build/gpu-check-service.log has its log; statuses of 504 are a slow start",
}
_MAX_REASON_CHARS = 300


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check of one model."""

    measured: dict[str, Any]
    aim: str
    is_met: bool
    check: str = ""
    model: str = ""
    seconds: float = 0
    log: str = ""  # the end of what its process printed

    def line(self) -> str:
        """Return a line for the terminal; what to try is another."""
        measured = json.dumps(_short(self.measured))
        if self.is_met:
            return f"ok in {self.seconds} s: {measured}"
        reason = self.log.strip().rpartition("\n")[2][:_MAX_REASON_CHARS]
        to_try = _TO_TRY.get(self.check.partition(",")[0], "report it with this file")
        return f"MISSED in {self.seconds} s: {measured}; aim: {self.aim}; {reason}\n    {to_try}"


def _short(measured: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in measured.items() if name not in _ONLY_IN_REPORT}


def append(path: Path, verdict: Verdict) -> None:
    """Add a line of JSON to the report; it survives the end of this process and of the host."""
    line = json.dumps(asdict(verdict)) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())
        os.fsync(file.fileno())


def summary(verdicts: Sequence[Verdict]) -> str:
    """Return device, versions, verdict and figures in one line."""
    host = "an unknown device"
    missed: list[str] = []
    figures: list[str] = []
    for verdict in verdicts:
        title = f"{verdict.check} {verdict.model}".strip()
        if not verdict.is_met:
            missed.append(title)
        if verdict.check == "devices" and HOST in verdict.measured:
            host = ", ".join(_short(verdict.measured).values())
        for name in _FIGURES.get(verdict.check.partition(",")[0], ()):
            if name in verdict.measured:
                figures.append(f"{title} {name}: {json.dumps(verdict.measured[name])}")
    result = f"all {len(verdicts)} aims are met"
    if missed:
        result = f"{len(missed)} of {len(verdicts)} aims are MISSED ({', '.join(missed)})"
    return f"gpu-check of {host}: {'; '.join([result, *figures])}"
