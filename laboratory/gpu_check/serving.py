"""The service with all models and an adapter of each on the device, in whose load a runner is
killed: every request must be answered, and the runner must restart.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice, product
from pathlib import Path
from threading import Timer

import numpy as np
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from diptych_client import AnswerOptions, Client, DiptychError
from export.scenes import render_scene, sample_scene
from laboratory.gpu_check.parts import Model
from laboratory.gpu_check.report import Verdict
from laboratory.processes import ROOT, Launch, free_port, part_ids, running
from laboratory.scenes import PLAIN_PX, png
from wire.artifacts.adapter_folder import CONFIG_FILE, ENTRY_FILE, WEIGHTS_FILE
from wire.artifacts.manifest import DECODER_FILE

_NUM_CLIENTS = 16
_NUM_IMAGES = 16
_RANK = 8
_REQUEST_TIMEOUT_S = 300  # a restart captures all CUDA graphs again
_TIMEOUT_S = 60
_LOG = ROOT / "build" / "gpu-check-service.log"


def check_service(model_ids: Sequence[str], seconds: float) -> Verdict:
    """Send requests to the service for `seconds`, and kill the first model's runner half-way."""
    port = free_port()
    ids = list(model_ids)
    runner = f"{ids[0]}-runner"
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "DIPTYCH_HOST": "127.0.0.1",
            "DIPTYCH_PORT": str(port),
            "DIPTYCH_GRPC_PORT": "0",
            "DIPTYCH_MODELS": ",".join(ids),
            "DIPTYCH_DEVICE": "cuda",
            "DIPTYCH_ADAPTERS": folder,
            "DIPTYCH_REQUEST_TIMEOUT_S": str(_REQUEST_TIMEOUT_S),
        }
        ids += [_write_adapter(Model.of(model_id), Path(folder)) for model_id in model_ids]
        launch = Launch((sys.executable, "-m", "service"), port, "/readyz", settings)
        images = []
        for seed in range(_NUM_IMAGES):
            images.append(png(render_scene(sample_scene(seed), PLAIN_PX)))
        with running(launch, _LOG) as process_id:
            _wait_until_listed(launch.url, ids)
            before = part_ids(process_id)
            answers = _load(launch.url, ids, images, seconds / 2)
            latencies_ms = [1000 * latency_s for _, latency_s in answers]
            killing = Timer(seconds / 4, os.kill, (before[runner], signal.SIGKILL))
            killing.start()
            answers += _load(launch.url, ids, images, seconds / 2)
            killing.join()
            answers += _load(launch.url, ids, images, 0)  # after the restart
            after = part_ids(process_id)
    restarted = [name for name in before if after.get(name) != before[name]]
    outcomes = Counter(outcome for outcome, _ in answers)
    p50, p95 = np.percentile(latencies_ms, (50, 95)).round(1).tolist()
    measured = {
        "models": len(ids),
        "requests/s": round(2 * len(latencies_ms) / seconds, 1),
        "p50, ms": p50,
        "p95, ms": p95,
        "outcomes, with a runner killed": dict(outcomes),
        "restarted": restarted,
    }
    is_met = outcomes.keys() == {"answered"} and restarted == [runner]
    return Verdict(measured, "all answered, one runner restarted", is_met)


def _write_adapter(model: Model, folder: Path) -> str:
    """Write a random adapter of the decoder's layers in PEFT's format; return its id."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with safe_open(model.folder / DECODER_FILE, framework="pt") as file:
        for name in list(file.keys()):
            layer = name.removesuffix(".weight")
            if layer.endswith("_proj") and layer != name:
                num_out, num_in = file.get_slice(name).get_shape()
                random = torch.randn(_RANK, num_in, generator=generator)
                tensors[f"base_model.model.{layer}.lora_A.weight"] = random / num_in
                tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.ones(num_out, _RANK)
    adapter_id = f"{model.id}-adapter"
    path = folder / adapter_id
    path.mkdir()
    config = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _RANK, "bias": "none"}
    config |= {"target_modules": [".*_proj"]}
    (path / CONFIG_FILE).write_text(json.dumps(config), encoding="utf-8")
    (path / ENTRY_FILE).write_text(yaml.safe_dump({"adapter_of": model.id}), encoding="utf-8")
    save_file(tensors, path / WEIGHTS_FILE)
    return adapter_id


def _wait_until_listed(url: str, ids: Sequence[str]) -> None:
    """Return when the gateway serves the adapters, too; raise `TimeoutError` if it never does."""
    deadline_s = time.monotonic() + _TIMEOUT_S
    with Client(url) as client:
        while not set(ids) <= {model.id for model in client.models()}:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the service does not list {ids}; see {_LOG}")
            time.sleep(0.2)


def _load(
    url: str, ids: Sequence[str], images: Sequence[bytes], seconds: float
) -> list[tuple[str, float]]:
    """Send requests for `seconds`; return their outcomes and durations."""
    deadline_s = time.monotonic() + seconds
    questions = list(product(images, ids))
    options = AnswerOptions(max_new_tokens=30)
    answers: list[tuple[str, float]] = []

    def ask_all(place: int) -> None:
        for image, model_id in islice(cycle(questions), place, None):
            start_s = time.monotonic()
            outcome = "answered"
            try:
                client.predict(image, "captioning", model=model_id, options=options)
            except DiptychError as error:
                outcome = error.code
            answers.append((outcome, time.monotonic() - start_s))
            if time.monotonic() > deadline_s:
                break

    with (
        Client(url, timeout_s=_REQUEST_TIMEOUT_S, max_retries=0) as client,
        ThreadPoolExecutor(_NUM_CLIENTS) as pool,
    ):
        list(pool.map(ask_all, range(_NUM_CLIENTS)))
    return answers
