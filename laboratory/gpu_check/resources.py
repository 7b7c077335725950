"""The devices, memory under load, a full card and a lost one; and the export of real widths."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnxruntime
import torch
from torch.utils.collect_env import get_pretty_env_info

from laboratory.gpu_check.parts import Model, equal_share, requests, scheduler, write
from laboratory.gpu_check.report import HOST, Verdict
from laboratory.processes import ROOT
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from wire.artifacts.devices import decoder_device, encoder_device

_SMI = ("nvidia-smi", "-q")  # driver, ECC, MIG, clocks, processes
_TIMEOUT_S = 60
_NUM_SEQUENCES = 16
_LONG_PROMPT = 100
_MIN_EQUAL = 0.9  # of answers: other batches round differently


def check_devices() -> Verdict:
    """Name the card, the versions of driver and libraries, and the devices that `auto` chooses."""
    try:
        run = subprocess.run(_SMI, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        smi = run.stdout + run.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        smi = str(error)
    driver = re.search(r"Driver Version\s*: (\S+)", smi)
    devices = encoder_device("auto"), decoder_device("auto")
    measured = {
        "device": torch.cuda.get_device_name(),
        "driver": f"driver {driver[1] if driver else 'unknown'}",
        "versions": f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}",
        "auto": "auto: encoder {}, decoder {}".format(*devices),
        HOST: [get_pretty_env_info(), smi],  # type: ignore[no-untyped-call]
    }
    return Verdict(measured, "auto is cuda for both", devices == ("cuda", "cuda"))


def export_widths(model_id: str) -> Verdict:
    """Make the artifacts of random weights if they are out of date."""
    from laboratory.bench.material import RANDOM_MODELS, make_model  # imports transformers

    entry = make_model(ROOT / "build" / "gpu-check" / model_id, RANDOM_MODELS[model_id])
    return Verdict({"parameters": entry.parameters}, "artifacts are made", is_met=True)


def check_memory(model_id: str) -> Verdict:
    """Compare the memory of encoder and decoder before and after a load of different shapes."""
    model = Model.of(model_id)
    encoder = model.encoder()
    images = model.images(16)
    encoder_mb = []
    for _ in range(2):
        for num in (1, 3, 13, 16):
            encoder.encode(images[:num])
        free_bytes, total_bytes = torch.cuda.mem_get_info()  # ONNX Runtime's included
        encoder_mb.append((total_bytes - free_bytes) // 10**6)
    decoder = model.decoder()
    features = model.features()
    with scheduler(decoder, 16) as running:
        write(running, requests(decoder, [features] * 16, 4))
        ready = torch.cuda.memory_reserved()
        for num in (1, 3, 8, 16, 32):
            write(running, requests(decoder, [features] * num, 48))
        after = torch.cuda.memory_reserved()
    decoder_mb = [ready // 10**6, after // 10**6]
    measured = {"decoder, MB": decoder_mb, "card with encoder, MB": encoder_mb}
    is_met = after <= 1.05 * ready and encoder_mb[1] <= 1.05 * encoder_mb[0]
    return Verdict(measured, "each at most 5 % more after load", is_met)


def check_out_of_memory(model_id: str) -> Verdict:
    """Leave memory for a part of a prefill: halves of it must be answered as before."""
    model = Model.of(model_id)
    decoder = model.decoder(precision="float32")
    batch = []
    for request in requests(decoder, [model.features()] * _NUM_SEQUENCES, 8):
        # too long for a captured prefill, which allocates nothing
        batch.append(replace(request, prompt_ids=(request.prompt_ids * 100)[:_LONG_PROMPT]))
    with scheduler(decoder, _NUM_SEQUENCES) as running:
        for num in (_NUM_SEQUENCES, 8, 4, 2):  # a full card has no memory to load their kernels
            write(running, batch[:num])
        least_bytes = _needed_bytes(running, batch[:1], "reserved")
        most_bytes = _needed_bytes(running, batch, "allocated")
        expected = write(running, batch)
        torch.cuda.empty_cache()
        ballast = []
        left_bytes = (least_bytes + most_bytes) // 2
        for spare_bytes in (2**28, 0):  # in two: a large block takes more than its size
            ballast_bytes = torch.cuda.mem_get_info()[0] - left_bytes - spare_bytes
            ballast.append(torch.empty(ballast_bytes, dtype=torch.uint8, device="cuda"))
        answers = write(running, batch)
        ballast_mb = sum(map(len, ballast)) // 10**6
        ballast.clear()
        answers_after = write(running, batch)
    num_failed = torch.cuda.memory_stats()["num_ooms"]
    shares = equal_share(expected, answers), equal_share(expected, answers_after)
    measured = {
        "ballast, MB": ballast_mb,
        "needed by 1 and 16, MB": [least_bytes // 10**6, most_bytes // 10**6],
        "failed allocations": num_failed,
        "equal answers": shares,
    }
    aim = f"an allocation fails, and equal answers are >= {_MIN_EQUAL} then and afterwards"
    return Verdict(measured, aim, num_failed > 0 and min(shares) >= _MIN_EQUAL)


def _needed_bytes(running: Scheduler, batch: Sequence[SequenceRequest], kind: str) -> int:
    """Return the memory that requests take; what is "reserved" includes what blocks waste."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    idle_bytes = torch.cuda.memory_stats()[f"{kind}_bytes.all.current"]
    write(running, batch)
    return int(torch.cuda.memory_stats()[f"{kind}_bytes.all.peak"] - idle_bytes)


def lose_device(model_id: str) -> Verdict:
    """Trip a device-side assert in a prefill: the process must end at once with its own status."""
    model = Model.of(model_id)
    decoder = model.decoder()
    with scheduler(decoder, 2) as running:
        engine: Any = running._batch._engine
        prefill = engine.prefill

        def prefill_and_fail(*arguments: Any) -> Any:
            torch._assert_async(torch.zeros(1, device="cuda"))
            return prefill(*arguments)

        engine.prefill = prefill_and_fail
        write(running, requests(decoder, [model.features()], 8))
    return Verdict({}, "the process ends", is_met=False)
