"""The check of a GPU: its processes and report; tests/system/test_fake_cuda.py has it on cards."""

import ctypes
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from laboratory.gpu_check.__main__ import parse, plan
from laboratory.gpu_check.processes import Check
from laboratory.gpu_check.report import HOST, KERNELS, Verdict, summary
from tests.support.export_cli import ROOT

OF_WIDTHS = [
    *("features", "tokens, 1 beams", "encoder", "encoder, TensorRT"),
    *("prefill", "step", "throughput"),
]
OF_SERVED = [
    *OF_WIDTHS,
    *("tokens, 3 beams", "tokens, sampled", "tokens, constrained"),
    *("memory", "out of memory", "lost device"),
]
PROGRAM = """
import sys
from pathlib import Path
from laboratory.gpu_check.__main__ import run_all
from tests.laboratory import test_gpu_check

if __name__ == "__main__":
    sys.exit(run_all(getattr(test_gpu_check, sys.argv[1]), Path(sys.argv[2])))
"""


def succeed() -> Verdict:
    return Verdict({"id": os.getpid(), KERNELS: ["gemm"]}, "<= 3", is_met=True)


def hang(seconds: float) -> Verdict:
    time.sleep(seconds)
    return succeed()


def crash() -> Verdict:
    ctypes.string_at(0)
    return succeed()


def leave(status: int) -> Verdict:
    os._exit(status)


def fail() -> Verdict:
    raise RuntimeError("CUDA error: unknown error")


def check(name: str, *arguments: Any, **options: Any) -> Check:
    return Check(name, f"{__name__}:{name}", arguments, **options)


FAULTS = [
    check("succeed"),
    check("hang", 20, limit_s=0.5),
    check("crash"),
    check("leave", 70),
    check("leave", 0),
    check("fail"),
    check("leave", 70, status=70),
    check("succeed", status=70),
    check("succeed"),
]
ENDLESS = [check("succeed"), check("succeed"), check("hang", 600)]


def start(checks: str, report: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", PROGRAM, checks, str(report)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_fault_costs_its_own_line(tmp_path: Path) -> None:
    report = tmp_path / "gpu-report.json"
    report.write_text("that of an earlier check\n")
    process = start("FAULTS", report)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = list(map(json.loads, report.read_text().splitlines()))
    met = [line["is_met"] for line in lines]
    assert met == [True, False, False, False, False, False, True, False, True]
    first, hung, crashed, left, _, failed, *_ = lines
    assert first["measured"][KERNELS] == ["gemm"]
    assert "in hang" in hung["log"]
    assert (crashed["measured"], left["measured"]) == ({"status": -11}, {"status": 70})
    assert failed["log"].endswith("RuntimeError: CUDA error: unknown error\n")
    shown = printed.splitlines()
    assert shown[0].startswith("9 checks, about 1.5 minutes on a fast card")
    assert shown[1].startswith(f'1 of 9: succeed ... ok in {first["seconds"]} s: {{"id": ')
    assert "gemm" not in printed
    assert "; RuntimeError: CUDA error: unknown error" in printed
    assert "6 of 9 aims are MISSED (hang, crash, leave, leave, fail, succeed)" in shown[-1]


def test_a_killed_check_leaves_what_was_known(tmp_path: Path) -> None:
    report = tmp_path / "gpu-report.json"
    process = start("ENDLESS", report)
    deadline_s = time.monotonic() + 60
    while not report.exists() or report.read_text().count("\n") < 2:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    lines = list(map(json.loads, report.read_text().splitlines()))
    assert [line["check"] for line in lines] == ["succeed", "succeed"]
    assert psutil.wait_procs(children, timeout=60)[1] == [], "a check goes on"


def test_the_last_line_is_for_an_issue() -> None:
    measured = {"device": "H100", "driver": "driver 580.1", HOST: "a long text"}
    throughput = Verdict({"images/s": 251.5}, ">= 250", True, "throughput", "base")
    verdicts = [Verdict(measured, "", True, "devices"), throughput]
    met = "gpu-check of H100, driver 580.1: all 2 aims are met; throughput base images/s: 251.5"
    assert summary(verdicts) == met
    missed = summary([replace(throughput, is_met=False)])
    assert missed.startswith(
        "gpu-check of an unknown device: 1 of 1 aims are MISSED (throughput base)"
    )


def test_widths_are_exported_and_not_served() -> None:
    checks = plan(parse(["--widths", "--seconds", "5", "florence-2-mini"]))
    names: dict[str, list[str]] = {check.model: [] for check in checks}
    for check in checks:
        names[check.model].append(check.name)
    assert names == {
        "": ["devices", "service"],
        "florence-2-mini": OF_SERVED,
        "florence-2-base-random": ["export", *OF_WIDTHS],
        "paligemma-3b-random": ["export", *OF_WIDTHS],
    }
    throughput = {}
    for check in checks:
        if check.name == "throughput":
            throughput[check.model] = check.arguments[1:]
    assert throughput == {
        "florence-2-mini": (5.0, 1.0),
        "florence-2-base-random": (5.0, 250.0),
        "paligemma-3b-random": (5.0, 1.0),
    }
    assert checks[-1].arguments == (("florence-2-mini",), 5.0)


def test_the_check_takes_ten_minutes() -> None:
    checks = plan(parse(["--widths", "florence-2-mini", "paligemma-mini"]))
    usual_s = [check.usual_s for check in checks if check.name != "export"]
    assert sum(usual_s) <= 600
