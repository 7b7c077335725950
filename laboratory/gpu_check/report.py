"""Checks against their aims, what to try where one is missed, and the report: all of them, what the
libraries logged, and the host.
"""

import json
import subprocess
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime
from torch.utils.collect_env import get_pretty_env_info

FILE = Path("gpu-report.json")
KERNELS = "kernel names"  # only in the report
_SMI = ("nvidia-smi", "-q")  # driver, ECC, MIG, clocks, processes
_TIMEOUT_S = 60
_TO_TRY = {
    "devices": "see `log` for the reason of a fallback; the driver must be 580 or later;"
    " `rm -r build/gpu` and check again",
    "features": "set DIPTYCH_ENCODER_PRECISION=float32, and report it with this file",
    "tokens": "few differences are rounding; many: set DIPTYCH_DECODER_PRECISION=float32",
    "choices": "a captured choice differs from the eager one: report it with this file",
    "encoder": "see `log` for sizes without CUDA graphs; export the model again",
    "prefill": "other processes on the card? `nvidia_smi` has clocks and processes",
    "step": "see `log` for steps without CUDA graphs; other processes on the card? a sampled row"
    " that costs the others time: report it with this file",
    "throughput": "see the checks before it: the slowest part limits it",
    "memory": "memory grows under load: report it with this file",
    "service": "build/gpu-check-service.log has its log; statuses of 504 are a slow start",
    "lost device": "the runner did not end: `measured` has its log",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one check of one model."""

    measured: dict[str, Any]
    aim: str
    is_met: bool
    check: str = ""
    model: str = ""

    def line(self) -> str:
        """Return one line of JSON."""
        measured = {name: value for name, value in self.measured.items() if name != KERNELS}
        return json.dumps(asdict(self) | {"measured": measured})


def run(check: Callable[[], Verdict], name: str, model: str) -> Verdict:
    """Return the verdict of a check; one that raises an error is a missed aim."""
    try:
        verdict = check()
    except Exception as error:  # the others must still run
        measured = {
            "error": f"{type(error).__name__}: {error}",
            "traceback": "".join(traceback.format_exception(error)),
        }
        verdict = Verdict(measured, "it runs", is_met=False)
    return replace(verdict, check=name, model=model)


def write(path: Path, verdicts: Sequence[Verdict], log: Sequence[str]) -> None:
    report = {"host": host(), "log": list(log), "verdicts": list(map(asdict, verdicts))}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def what_to_try(verdicts: Sequence[Verdict]) -> str:
    """Return a line for each check whose aim is missed."""
    lines = {}
    for verdict in verdicts:
        if not verdict.is_met:
            lines[verdict.check] = f"{verdict.check}: {_TO_TRY[verdict.check.partition(',')[0]]}"
    return "\n".join(lines.values()) or f"all {len(verdicts)} aims are met"


def host() -> dict[str, Any]:
    """Return the versions of libraries and driver, and the state of the card."""
    try:
        run = subprocess.run(_SMI, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        smi = run.stdout + run.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        smi = str(error)
    return {
        "libraries": get_pretty_env_info(),  # type: ignore[no-untyped-call]
        "providers": onnxruntime.get_available_providers(),
        "nvidia_smi": smi,
    }
