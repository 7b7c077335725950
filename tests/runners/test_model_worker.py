"""The order in which a runner loads its parts, and the cores that it counts."""

import shutil
from pathlib import Path

from tests.support.export_cli import ModelStore

# An adapter that has the encoder of its base and changes nothing in the decoder.
LOADS_AN_ADAPTER = """
import asyncio, os, shutil, sys
from dataclasses import replace
from safetensors.torch import save_file
from export.artifacts.store import new_version
from wire.artifacts.manifest import ADAPTER_FILE, VISION_ENCODER_FILE
from wire.artifacts.manifest import read_manifest, sha256_of, write_manifest
from wire.artifacts.model_store import artifact_folder
from runners.decoder.scheduler import Scheduler
from runners.model_worker import DecoderWorker
from runners.encoder.worker import EncoderWorker
from runners.model_worker import ModelWorker
from service.inference.served_models import runner_options
from service.settings import Settings

base_id = "florence-2-mini"
base_folder = artifact_folder(base_id)
base = read_manifest(base_folder)
with new_version("tuned") as folder:
    shutil.copy(base_folder / VISION_ENCODER_FILE, folder)
    save_file({}, folder / ADAPTER_FILE)
    files = {name: sha256_of(folder / name) for name in (VISION_ENCODER_FILE, ADAPTER_FILE)}
    own = {"model_id": "tuned", "build_key": "tuned"}
    own |= {"adapter_of": base_id, "base_build_key": base.build_key}
    write_manifest(folder, replace(base, files=files, **own))

def profile(frame, event, _):
    owner = frame.f_locals.get("self")
    is_load = event == "call" and frame.f_code.co_name == "load"
    if is_load and isinstance(owner, (EncoderWorker, DecoderWorker)):
        cores = frame.f_locals["num_cores"]
        print(type(owner).__name__, owner._manifest.model_id, f"on {cores} core")
    if event == "call" and frame.f_code.co_name == "submit" and isinstance(owner, Scheduler):
        print("warm-up")

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
settings = Settings(encoder_precision="float32", device="cpu")
options = replace(runner_options(base_id, settings, ()), adapters=("tuned",))
worker = ModelWorker(base_id, options, None)
sys.setprofile(profile)
worker.load()
sys.setprofile(None)
states = asyncio.run(worker.adapters())
print(*states.loaded, asyncio.run(worker.is_ready()))
worker.stop()
"""


def test_all_encoders_are_loaded_before_the_decoder_starts_its_thread(
    exported: ModelStore, tmp_path: Path
) -> None:
    """A capture of CUDA graphs would forbid that thread to allocate, and slots take what the
    encoders leave.
    """
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    run = store.forked("-c", LOADS_AN_ADAPTER)
    encoders = ["EncoderWorker florence-2-mini on 1 core", "EncoderWorker tuned on 1 core"]
    loads = [*encoders, "DecoderWorker florence-2-mini on 1 core", "warm-up", "tuned True"]
    assert run.stdout.splitlines() == loads, run.stderr
