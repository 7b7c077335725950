"""The parts of a runner: the order in which they load, their cores, batches and streams."""

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from export.scenes import render_scene, sample_scene
from runners import model_worker
from runners.encoder import session
from runners.encoder.features_cache import CachedFeatures, Encoding
from runners.encoder.session import CudaEncoder, CudaOptions, EncoderWorker, load_encoder
from runners.model_worker import DecoderWorker, ModelWorker
from runners.service import make_runner_service
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.catalog import FLORENCE
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.host_memory import HostMemory
from wire.artifacts.manifest import read_manifest, vision_encoder_file
from wire.runner_channel import RunnerCall
from wire.runner_messages import (
    EncodedImage,
    Failed,
    ImageToEncode,
    SequenceEnd,
    SequenceSpec,
    TextPiece,
    WritingEvent,
    Written,
)

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
from runners.service import make_runner_service
from runners.encoder.session import EncoderWorker
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


def test_encoders_are_loaded_before_the_decoder(exported: ModelStore, tmp_path: Path) -> None:
    """A capture of CUDA graphs would forbid that thread to allocate, and slots take what the
    encoders leave.
    """
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    run = store.forked("-c", LOADS_AN_ADAPTER)
    encoders = ["EncoderWorker florence-2-mini on 1 core", "EncoderWorker tuned on 1 core"]
    loads = [*encoders, "DecoderWorker florence-2-mini on 1 core", "warm-up", "tuned True"]
    assert run.stdout.splitlines() == loads, run.stderr


OWNERS = (None, "tuned", "tuned", None, "tuned")  # one for each image of a batch


def test_images_of_a_mixed_batch_have_the_features_of_their_own_encoder(
    exported: ModelStore,
) -> None:
    """The embedded models stand for a base and an adapter: their encoders take the same input."""
    options = runner_options(FLORENCE.id, Settings(encoder_precision="float32"), ())
    worker: Any = ModelWorker(FLORENCE.id, options, None)  # type: ignore[arg-type]  # no batcher
    worker.encoders = {}
    alone = {}
    for adapter, model_id in zip((None, "tuned"), EMBEDDED, strict=True):
        folder = exported.newest(model_id)
        worker.encoders[adapter] = EncoderWorker(read_manifest(folder), options, "cpu")
        worker.encoders[adapter].load(folder, 1)
        alone[adapter] = load_encoder(folder, precision="float32")
    pixels = [np.asarray(render_scene(sample_scene(seed), 192)) for seed in range(len(OWNERS))]
    batch = [Encoding(image, owner) for image, owner in zip(pixels, OWNERS, strict=True)]
    in_places = dict(zip((0, 1, 2, 4, 5), batch, strict=True))
    worker._cache = SimpleNamespace(take=in_places.get)
    outcomes = worker.encode([ImageToEncode(place=place) for place in range(6)])
    unknown = outcomes.pop(3)
    assert unknown.failed is not None
    assert unknown.failed.message == "no pending call has this image"
    assert [outcome.failed for outcome in outcomes] == [None] * len(batch)
    assert len({outcomes[place].encode_s for place in (1, 2, 4)}) == 1  # one batch
    assert outcomes[0].encode_s == outcomes[3].encode_s != outcomes[1].encode_s
    for encoding in batch:
        expected = alone[encoding.adapter].encode(encoding.pixels[None])[0]
        assert encoding.features is not None
        assert torch.allclose(encoding.features, expected, atol=1e-4)


async def test_a_gpu_gets_images_before_their_batch(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_fixed(folder: Path, *_: object) -> CudaEncoder:
        file = folder / vision_encoder_file("float32")
        opened = session.open_cpu_session(file, 1)
        encoder = CudaEncoder(lambda _: opened, CudaOptions(2), HostMemory)
        encoder.load()
        return encoder

    async def batched(place: int) -> EncodedImage:
        staged = worker._cache._in_batcher[place].staged
        assert staged.result() == place
        encoded: EncodedImage = worker.encode([ImageToEncode(place=place)])[0]
        return encoded

    monkeypatch.setattr(model_worker, "artifact_folder", lambda _: artifacts)
    monkeypatch.setattr(session, "load_encoder", load_fixed)
    options = runner_options("florence-2-mini", Settings(encoder_precision="float32"), ())
    worker: Any = ModelWorker("florence-2-mini", replace(options, max_batch_size=2), batched)
    worker.load()
    pixels = np.asarray(render_scene(sample_scene(0), 192))
    cached = await worker._cache.get("a", pixels)
    worker.stop()
    assert isinstance(cached, CachedFeatures)
    (expected,) = load_encoder(artifacts).encode(pixels[None])
    assert torch.allclose(cached.tensor, expected, atol=1e-4)


async def test_encodings_count_for_the_client_of_their_call() -> None:
    worker: Any = ModelWorker("a", None, None)  # type: ignore[arg-type]  # loads nothing
    arguments: list[object] = []

    async def get(*values: object) -> Failed:
        arguments.extend(values)
        return Failed(code="internal", message="")

    worker.encoders = {None: None}
    worker._cache = SimpleNamespace(get=get)
    spec = SequenceSpec(segments=[], adapter="text only", client="light", timeout_s=1)
    await worker.features(RunnerCall("key", [spec]))
    assert arguments == ["key", None, None, "light"]


SPEC = SequenceSpec(
    segments=[("What does the image describe?", False)], max_new_tokens=5, timeout_s=60
)


def events_of(artifacts: Path, specs: list[SequenceSpec]) -> list[WritingEvent]:
    """Return what a real worker streams, on a CPU and with the default limits."""
    manifest = read_manifest(artifacts)
    options = runner_options(manifest.model_id, Settings(device="cpu"), ())
    worker = DecoderWorker(manifest, options, "cpu")
    worker.load(artifacts, 1)
    features = torch.zeros(manifest.num_image_tokens, manifest.hidden_size)

    async def events() -> list[WritingEvent]:
        return [event async for event in worker.stream(features, specs)]

    streamed = asyncio.run(events())
    worker.scheduler.stop()
    return streamed


@pytest.mark.parametrize(("max_work", "num_prefills"), [(800_000, 1), (1, 3)])
def test_streams_of_sequences_prefilled_together_or_one_by_one(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, max_work: int, num_prefills: int
) -> None:
    monkeypatch.setattr("runners.options._CPU_PREFILL", max_work)
    pieces = [""] * 3
    texts = [""] * 3
    queues_s = set()  # equal within a prefill
    for event in events_of(artifacts, [SPEC] * 3):
        if isinstance(event, TextPiece):
            pieces[event.index] += event.text
        elif isinstance(event, SequenceEnd):
            assert isinstance(event.outcome, Written)
            texts[event.index] = event.outcome.text
            queues_s.add(event.outcome.queue_s)
    assert len(queues_s) == num_prefills
    assert pieces == texts != [""] * 3


# BentoML 1.4.40 uses what pathspec and pydantic have deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_gpu_that_is_not_visible_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    options = replace(runner_options(FLORENCE.id, Settings(), ()), gpu=1)
    runner = make_runner_service(FLORENCE.id, options).inner()
    with pytest.raises(RuntimeError, match="cuda:1 is requested"):
        asyncio.run(runner.load())
