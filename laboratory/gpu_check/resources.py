"""The devices, memory under load, and what happens after a lost device."""

import subprocess
import sys

import torch

from laboratory.gpu_check.parts import Model, requests, scheduler, write
from laboratory.gpu_check.report import Verdict
from runners.errors import EXIT_STATUS
from wire.artifacts.devices import decoder_device, encoder_device
from wire.artifacts.manifest import Device

_LOSES_THE_DEVICE = """
import sys
import torch
from laboratory.gpu_check.parts import Model, requests, scheduler, write

model = Model.of(sys.argv[1])
decoder = model.decoder("cuda")
with scheduler(decoder, 2) as running:
    engine = running._batch._engine
    prefill = engine.prefill
    one = torch.zeros(1, device="cuda")
    engine.prefill = lambda *args: (one[one.long() + 10**6], prefill(*args))[1]
    write(running, requests(decoder, [model.features("cuda")], 8))
"""


def check_memory(model: Model) -> Verdict:
    """Compare the memory of encoder and decoder before and after a load of different shapes."""
    encoder = model.encoder("cuda")
    images = model.images(16)
    encoder_ready = _bytes_in_use()
    for num in (1, 3, 13, 16):
        encoder.encode(images[:num])
    encoder_after = _bytes_in_use()
    decoder = model.decoder("cuda")
    features = model.features("cuda")
    with scheduler(decoder, 16) as running:
        write(running, requests(decoder, [features] * 16, 4))
        ready = torch.cuda.memory_reserved()
        for num in (1, 3, 8, 16, 32):
            write(running, requests(decoder, [features] * num, 48))
        after = torch.cuda.memory_reserved()
    measured = {
        "decoder, MB": [ready // 10**6, after // 10**6],
        "card with encoder, MB": [encoder_ready // 10**6, encoder_after // 10**6],
    }
    is_met = after <= 1.05 * ready and encoder_after <= 1.05 * encoder_ready
    return Verdict(measured, "each at most 5 % more after load", is_met)


def _bytes_in_use() -> int:
    """Return the memory in use on the card, that of ONNX Runtime included."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def check_lost_device(model: Model) -> Verdict:
    """Trip a device-side assert in a prefill: the process must end at once with its own status."""
    command = [sys.executable, "-c", _LOSES_THE_DEVICE, model.id]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    measured = {"status": run.returncode, "log": run.stderr.strip().splitlines()[-1:]}
    return Verdict(measured, f"status {EXIT_STATUS}", run.returncode == EXIT_STATUS)


def check_devices(device: Device) -> Verdict:
    """Name the card, and the devices that `auto` chooses."""
    devices = (encoder_device("auto"), decoder_device("auto"))
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    measured = {"device": name, "auto": "encoder {}, decoder {}".format(*devices)}
    return Verdict(measured, f"auto is {device} for both", devices == (device, device))
