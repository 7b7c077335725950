"""`python -m laboratory.gpu_check MODEL…`: check that the models run well on this host's GPU.

Prints a line for each check, with what to try where an aim is missed, and at last one for an issue;
appends each verdict to gpu-report.json. The exit status is 1 if an aim is missed. The models are in
the store of BENTOML_HOME.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import set_forkserver_preload
from pathlib import Path

from laboratory.bench.load import RANDOM_MODEL
from laboratory.gpu_check import report
from laboratory.gpu_check.processes import Check, run

_FILE = Path("gpu-report.json")
_EXACTNESS = "laboratory.gpu_check.exactness"
_RESOURCES = "laboratory.gpu_check.resources"
_SPEED = "laboratory.gpu_check.speed"
_WIDTHS = (RANDOM_MODEL, "paligemma-3b-random")
# images per second with 30 tokens each, greedy, on an H100; of others any number
_IMAGES_PER_S = {RANDOM_MODEL: 250.0}
_SAMPLED = {"temperature": 1.0, "top_p": 0.9, "seed": 1}
_CONSTRAINED = {"grammar": "start: <[0-999]>*"}  # tokens by their ids

_OF_EVERY_MODEL = (
    Check("features", f"{_EXACTNESS}:check_features"),
    Check("tokens, 1 beams", f"{_EXACTNESS}:check_tokens", ({"num_beams": 1},)),
    Check("encoder", f"{_SPEED}:check_encoder"),
    Check("encoder, TensorRT", f"{_SPEED}:measure_tensorrt", limit_s=900),
    Check("prefill", f"{_SPEED}:check_prefill"),
    Check("step", f"{_SPEED}:check_step", usual_s=20),
)
_OF_SERVED_MODELS = (
    Check("tokens, 3 beams", f"{_EXACTNESS}:check_tokens", ({"num_beams": 3},)),
    Check("tokens, sampled", f"{_EXACTNESS}:check_tokens", (_SAMPLED,)),
    Check("tokens, constrained", f"{_EXACTNESS}:check_tokens", (_CONSTRAINED,)),
    Check("memory", f"{_RESOURCES}:check_memory"),
    Check("out of memory", f"{_RESOURCES}:check_out_of_memory"),
    Check("lost device", f"{_RESOURCES}:lose_device", status=os.EX_SOFTWARE),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; return the exit status."""
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    return run_all(plan(parse(arguments)), _FILE)


def run_all(checks: Sequence[Check], file: Path) -> int:
    """Run checks one after the other, and report each; return the exit status."""
    minutes = sum(check.usual_s for check in checks) / 60
    print(f"{len(checks)} checks, about {minutes:.1f} minutes on a fast card; see {file}")
    file.unlink(missing_ok=True)
    set_forkserver_preload(sorted({check.function.partition(":")[0] for check in checks}))
    verdicts = []
    for number, check in enumerate(checks, 1):
        title = f"{check.name} {check.model}".strip()
        print(f"{number} of {len(checks)}: {title} ... ", end="", flush=True)
        verdicts.append(run(check))
        report.append(file, verdicts[-1])
        print(verdicts[-1].line(), flush=True)
    print(report.summary(verdicts))
    return 0 if all(verdict.is_met for verdict in verdicts) else 1


def plan(parsed: argparse.Namespace) -> list[Check]:
    """Return the checks, in the order in which they run."""
    seconds = parsed.seconds
    checks = [Check("devices", f"{_RESOURCES}:check_devices")]
    export = Check("export", f"{_RESOURCES}:export_widths", usual_s=60, limit_s=1800)
    throughput = Check("throughput", f"{_SPEED}:check_throughput", usual_s=20 + seconds)
    widths = _WIDTHS if parsed.widths else ()
    for model_id in (*parsed.models, *widths):
        aim = _IMAGES_PER_S.get(model_id, 1.0)
        templates = [*_OF_EVERY_MODEL, replace(throughput, arguments=(seconds, aim))]
        if model_id in widths:
            templates.insert(0, export)
        else:
            templates += _OF_SERVED_MODELS
        for check in templates:
            checks.append(replace(check, model=model_id, arguments=(model_id, *check.arguments)))
    if parsed.models:  # random weights have no catalog entry
        service = "laboratory.gpu_check.serving:check_service"
        arguments = tuple(parsed.models), seconds
        checks.append(Check("service", service, arguments, usual_s=40 + seconds, limit_s=900))
    return checks


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments of the command line."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.gpu_check", description=summary)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="a model of the store in BENTOML_HOME")
    widths = (
        "export Florence-2-base and the widths of PaliGemma-3B with random weights, and add them"
    )
    add("--widths", action="store_true", help=widths)
    seconds = "of the throughput and of the service; default: %(default)s"
    add("--seconds", type=float, default=10, help=seconds)
    parsed = parser.parse_args(arguments)
    if not (parsed.models or parsed.widths):
        parser.error("name a model, or give --widths")
    return parsed


if __name__ == "__main__":
    sys.exit(main())
