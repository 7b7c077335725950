"""`python -m laboratory.gpu_check MODEL…`: check that the models run well on this host's GPU.

Prints a line of JSON for each check, then a table, and writes gpu-report.json; `--read FILE` prints
the missed aims of one. The exit status is 1 if an aim is missed. The models are in the store of
BENTOML_HOME; `--widths` adds Florence-2-base with random weights, which is exported first.
"""

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from laboratory.bench.load import RANDOM_MODEL
from laboratory.bench.material import make_model
from laboratory.gpu_check import exactness, report, resources, speed
from laboratory.gpu_check.parts import Model
from laboratory.gpu_check.serving import check_service
from wire.artifacts.manifest import Device

# Images per second with 30 tokens each, greedy, on an H100; and the idle share of the device in
# steps of 16 greedy rows: Python's work (0.2 ms) takes less time than a pass of a real model.
_AIMS = {RANDOM_MODEL: (250.0, 0.1)}
_ANY_AIMS = (1.0, 1.0)

Check = Callable[[], report.Verdict]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; return the exit status."""
    parsed = _parse(arguments)
    if parsed.read is not None:
        print(report.read(parsed.read))
        return 0
    logging.getLogger().addHandler(log := report.LoggedWarnings())
    served = list(map(Model.of, parsed.models))  # random weights have no catalog entry
    if parsed.widths:
        with tempfile.TemporaryDirectory() as folder:
            parsed.models.append(make_model(Path(folder)).id)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    verdicts = []
    for model_id, name, check in _all_checks(parsed, served):
        verdict = report.run(check, name, model_id)
        verdicts.append(verdict)
        print(verdict.line(), flush=True)
    print(report.verdict_table(verdicts))
    report.write(report.FILE, verdicts, log.texts)
    return 0 if all(verdict.is_met for verdict in verdicts) else 1


def _all_checks(
    parsed: argparse.Namespace, served: Sequence[Model]
) -> Iterator[tuple[str, str, Check]]:
    """Yield the model, the name and the call of each check."""
    for model_id in parsed.models:
        for name, check in _checks(Model.of(model_id), parsed.device, parsed.seconds):
            yield model_id, name, check
    if served:
        check = partial(check_service, served, parsed.device, parsed.seconds)
        yield ", ".join(model.id for model in served), "service", check


def _checks(model: Model, device: Device, seconds: float) -> Iterator[tuple[str, Check]]:
    images_per_s, idle = _AIMS.get(model.id, _ANY_AIMS)
    yield "devices", partial(resources.check_provider, device)
    yield "features", partial(exactness.check_features, model, device)
    for num_beams in (1, 3):
        check = partial(exactness.check_tokens, model, device, num_beams)
        yield f"tokens, {num_beams} beams", check
    yield "choices", partial(exactness.check_choices, model, device)
    yield "encoder", partial(speed.check_encoder, model, device)
    yield "prefill", partial(speed.check_prefill, model, device)
    yield "step", partial(speed.check_step, model, device)
    yield "one sampled row of 16", partial(speed.check_sampled_among_greedy, model, device)
    yield "throughput", partial(speed.check_throughput, model, device, seconds, images_per_s)
    if device == "cuda":
        yield "idle share of a step", partial(speed.check_idle, model, device, idle)
        yield "traffic of a step", partial(resources.check_transfers, model)
        yield "memory", partial(resources.check_memory, model)
        yield "out of memory", partial(resources.check_out_of_memory, model)
        yield "lost device", partial(resources.check_lost_device, model)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.gpu_check", description=summary)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="a model of the store in BENTOML_HOME")
    add("--read", type=Path, metavar="FILE", help="print the missed aims of a report")
    add("--widths", action="store_true", help="add Florence-2-base with random weights")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    seconds = "of the throughput and of the service; default: %(default)s"
    add("--seconds", type=float, default=60, help=seconds)
    parsed = parser.parse_args(arguments)
    if not (parsed.models or parsed.widths or parsed.read):
        parser.error("name a model, --widths or --read FILE")
    return parsed


if __name__ == "__main__":
    sys.exit(main())
