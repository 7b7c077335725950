"""The service with all models and an adapter of each on the card, and a runner that is killed."""

import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
import yaml
from safetensors.torch import save_file

from tests.gpu.card import Card
from tests.gpu.test_counts import linear_layers
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import OPEN, RunningService, post_form, running_service
from tests.support.scene_images import scene_png
from tests.support.waiting import wait_until
from wire.artifacts.adapter_folder import CONFIG_FILE, ENTRY_FILE, WEIGHTS_FILE
from wire.artifacts.manifest import read_manifest

pytestmark = [pytest.mark.gpu, pytest.mark.long]

RANK = 8
NUM_CLIENTS = 16
NUM_IMAGES = 16
TIMEOUT_S = 300  # a restart captures all CUDA graphs again
SETTINGS = {
    "DIPTYCH_DEVICE": "cuda",
    "DIPTYCH_MODELS": ",".join(EMBEDDED),
    "DIPTYCH_REQUEST_TIMEOUT_S": str(TIMEOUT_S),
}


def write_adapter(artifacts: Path, adapters: Path) -> str:
    """Write a random adapter of the decoder's layers in PEFT's format; return its id."""
    model_id = read_manifest(artifacts).model_id
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer, (num_out, num_in) in linear_layers(artifacts, ("_proj",)).items():
        random = torch.randn(RANK, num_in, generator=generator)
        tensors[f"base_model.model.{layer}.lora_A.weight"] = random / num_in
        tensors[f"base_model.model.{layer}.lora_B.weight"] = torch.ones(num_out, RANK)
    folder = adapters / f"{model_id}-adapter"
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "bias": "none"}
    config |= {"target_modules": [".*_proj"]}
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    (folder / ENTRY_FILE).write_text(yaml.safe_dump({"adapter_of": model_id}))
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder.name


def listed(service: RunningService) -> set[str]:
    with service.client() as http:
        return {model["id"] for model in http.get("/v1/models").json()["data"]}


def test_a_killed_runner_costs_no_answer(card: Card, tmp_path: Path) -> None:
    store = ModelStore(card.home)
    adapters = tmp_path / "adapters"
    ids = [*EMBEDDED]
    for model_id in EMBEDDED:
        ids.append(write_adapter(store.newest(model_id), adapters))
    images = [scene_png(seed) for seed in range(NUM_IMAGES)]
    settings = {**SETTINGS, **card.variables, "DIPTYCH_ADAPTERS": str(adapters)}
    command = (str(card.python), "-m", "service")
    log = tmp_path / "service.log"
    runner = f"{EMBEDDED[0]}-runner"
    with (
        running_service(card.home, log, OPEN, command, TIMEOUT_S, **settings) as service,
        httpx.Client(base_url=service.url, timeout=TIMEOUT_S) as http,
        ThreadPoolExecutor(NUM_CLIENTS) as clients,
    ):
        wait_until(lambda: {*ids} <= listed(service))
        before = service.parts()
        pending = []
        for image in images:
            for model_id in ids:
                fields = {"task": "captioning", "model": model_id, "max_new_tokens": 30}
                pending.append(clients.submit(post_form, http, "/v1/predict", image, fields))
        wait_until(lambda: sum(call.done() for call in pending) > len(pending) // 4)
        service.send_signal(runner, signal.SIGKILL)
        statuses = Counter(call.result().status_code for call in pending)
        after = service.parts()
    assert statuses == {200: len(pending)}, log.read_text()[-4000:]
    assert [name for name in before if after.get(name) != before[name]] == [runner]
