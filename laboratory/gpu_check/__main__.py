"""`python -m laboratory.gpu_check MODEL…`: check that the models run well on this host's GPU.

Prints a line of JSON for each check, and what to try where an aim is missed; writes
gpu-report.json. The exit status is 1 if an aim is missed. The models are in the store of
BENTOML_HOME; `--widths` adds Florence-2-base with random weights, which is exported first.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path

from laboratory.bench.load import RANDOM_MODEL
from laboratory.bench.material import make_model
from laboratory.gpu_check import exactness, report, resources, speed
from laboratory.gpu_check.parts import Model
from laboratory.gpu_check.serving import check_service
from wire.artifacts.manifest import Device

# Images per second with 30 tokens each, greedy, on an H100.
_IMAGES_PER_S = {RANDOM_MODEL: 250.0}
_MAX_WARNINGS = 1_000_000

_CHECKS: dict[str, Callable[[Model, Device], report.Verdict]] = {
    "devices": lambda _, device: resources.check_devices(device),
    "features": exactness.check_features,
    "tokens, 1 beams": partial(exactness.check_tokens, num_beams=1),
    "tokens, 3 beams": partial(exactness.check_tokens, num_beams=3),
    "choices": exactness.check_choices,
    "encoder": speed.check_encoder,
    "prefill": speed.check_prefill,
    "step": speed.check_step,
}
_CHECKS_OF_A_CARD: dict[str, Callable[[Model], report.Verdict]] = {
    "memory": resources.check_memory,
    "lost device": resources.check_lost_device,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; return the exit status."""
    parsed = _parse(arguments)
    log = BufferingHandler(_MAX_WARNINGS)
    log.setLevel(logging.WARNING)
    logging.getLogger().addHandler(log)
    models = list(map(Model.of, parsed.models))
    served = list(models)  # random weights have no catalog entry
    if parsed.widths:
        with tempfile.TemporaryDirectory() as folder:
            models.append(Model.of(make_model(Path(folder)).id))
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    verdicts = []

    def run(name: str, model_id: str, check: Callable[[], report.Verdict]) -> None:
        verdicts.append(report.run(check, name, model_id))
        print(verdicts[-1].line(), flush=True)

    device: Device = parsed.device
    for model in models:
        for name, check in _CHECKS.items():
            run(name, model.id, partial(check, model, device))
        aim = _IMAGES_PER_S.get(model.id, 1.0)
        throughput = partial(speed.check_throughput, model, device, parsed.seconds, aim)
        run("throughput", model.id, throughput)
        if device == "cuda":
            for name, check_of_a_card in _CHECKS_OF_A_CARD.items():
                run(name, model.id, partial(check_of_a_card, model))
    if served:
        ids = ", ".join(model.id for model in served)
        run("service", ids, partial(check_service, served, device, parsed.seconds))
    print(report.what_to_try(verdicts))
    report.write(report.FILE, verdicts, list(map(log.format, log.buffer)))
    return 0 if all(verdict.is_met for verdict in verdicts) else 1


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.gpu_check", description=summary)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="a model of the store in BENTOML_HOME")
    add("--widths", action="store_true", help="add Florence-2-base with random weights")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    seconds = "of the throughput and of the service; default: %(default)s"
    add("--seconds", type=float, default=60, help=seconds)
    parsed = parser.parse_args(arguments)
    if not (parsed.models or parsed.widths):
        parser.error("name a model, or give --widths")
    return parsed


if __name__ == "__main__":
    sys.exit(main())
