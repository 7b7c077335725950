"""The exported encoders in ONNX Runtime: batches on a CPU, and batches of fixed sizes, which run
here in the CPU provider, that ignores CUDA graphs.
"""

import base64
import logging
import shutil
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from export.artifacts.onnx_graphs import write_int8
from runners.encoder import session
from runners.encoder.features_cache import Encoding
from runners.encoder.session import (
    CudaEncoder,
    CudaOptions,
    EncoderWorker,
    execution_providers,
    load_encoder,
    tensorrt_options,
)
from service.inference.served_models import runner_options
from service.settings import Settings
from tests.support.export_cli import ModelStore
from tests.support.host_memory import HostMemory
from wire.artifacts.manifest import (
    VISION_ENCODER_FILE,
    ArtifactError,
    read_manifest,
    vision_encoder_file,
)
from wire.pixels import Pixels
from wire.runner_messages import Failed

NAME = "the encoder of a model"
ROUNDING = 1e-4  # features are up to about 6; sums have another order
# the message of ONNX Runtime 1.32 with limited memory
NO_MEMORY = RuntimeError(
    "bfc_arena.cc:360 … Available memory of 69123840 is smaller than requested bytes of 84934656"
)
REFUSED = RuntimeError("This session cannot use the graph capture feature as requested by the user")
INVALIDATED = RuntimeError(
    "CUDA failure 901: operation failed due to a previous error during capture"
)

SEVERAL = """
import resource, sys
from pathlib import Path
import numpy as np
from runners.encoder.session import load_encoder

pixels = np.random.default_rng(0).integers(0, 256, (128, 192, 192, 3), dtype=np.uint8)
encoders = []
for number in (0, 0, 1, 2):
    if number == len(encoders):
        encoders.append(load_encoder(Path(sys.argv[1]), num_threads=1))
    start = int(Path("/proc/self/statm").read_text().split()[1])
    encoders[number].encode(pixels)
    print((int(Path("/proc/self/statm").read_text().split()[1]) - start) * resource.getpagesize())
"""


def random_pixels(num_images: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (num_images, 192, 192, 3), dtype=np.uint8)


@pytest.mark.long
def test_encoders_of_a_process_share_the_memory_of_activations(exported: ModelStore) -> None:
    run = exported.forked("-c", SEVERAL, str(exported.newest("florence-2-mini")))
    first, *others = map(int, run.stdout.split())
    assert first > 100_000_000
    assert max(others) < first / 4


def test_providers_of_a_gpu() -> None:
    (cuda, options), cpu = execution_providers(CudaOptions(), False)
    assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert options["arena_extend_strategy"] == "kSameAsRequested"
    assert (options["enable_cuda_graph"], "gpu_mem_limit" in options) == ("0", False)
    (_, options), _ = execution_providers(CudaOptions(max_bytes=2**30), True)
    assert (options["enable_cuda_graph"], options["gpu_mem_limit"]) == ("1", "1073741824")
    with_tensorrt = CudaOptions(max_bytes=5, tensorrt={"trt_fp16_enable": "1"})
    (tensorrt, first), (_, second), _ = execution_providers(with_tensorrt, True)
    assert tensorrt == "TensorrtExecutionProvider"
    assert first == {"trt_fp16_enable": "1", "trt_cuda_graph_enable": "1"}
    assert (second["gpu_mem_limit"], "enable_cuda_graph" in second) == ("5", False)


def test_engines_of_the_newest_versions_are_stored(
    artifacts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = SimpleNamespace(getInferLibVersion=lambda: 101601)
    monkeypatch.setattr("ctypes.CDLL", lambda _: library)
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "home"))
    folder = Path(shutil.copytree(artifacts, tmp_path / "a-model" / "build"))
    versions = f"{onnxruntime.__version__}-101601"
    options = tensorrt_options(folder, "float16", 8)
    engines = tmp_path / "home" / "tensorrt" / "a-model"
    side_px, _ = read_manifest(folder).image_size_wh
    assert options == {
        "trt_fp16_enable": "1",
        "trt_layer_norm_fp32_fallback": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(engines / f"build-{versions}"),
        "trt_profile_min_shapes": f"pixels:1x{side_px}x{side_px}x3",
        "trt_profile_opt_shapes": f"pixels:8x{side_px}x{side_px}x3",
        "trt_profile_max_shapes": f"pixels:8x{side_px}x{side_px}x3",
    }
    (engines / f"build-{versions}" / "engine").touch()
    assert tensorrt_options(folder, "float32", 8)["trt_fp16_enable"] == "0"
    assert (engines / f"build-{versions}" / "engine").exists()
    tensorrt_options(Path(shutil.copytree(folder, folder.parent / "next")), "float16", 8)
    assert [path.name for path in engines.iterdir()] == [f"next-{versions}"]
    with (folder / VISION_ENCODER_FILE).open("ab") as file:
        file.write(b"changed")
    with pytest.raises(ArtifactError, match="has sha256"):
        tensorrt_options(folder, "float16", 8)


def test_wrong_features_of_tensorrt_end_the_start(artifacts: Path) -> None:
    encoder: Any = load_encoder(artifacts)
    size_wh = read_manifest(artifacts).image_size_wh
    session._compare(encoder, encoder, size_wh)
    right = encoder.encode(random_pixels(1))
    for wrong in (right * torch.nan, torch.zeros_like(right), right.flip(1)):
        other: Any = SimpleNamespace(encode=lambda _, wrong=wrong: wrong)
        with pytest.raises(RuntimeError, match=r"have a cosine of .*PROVIDER=cuda"):
            session._compare(other, encoder, size_wh)


def test_an_image_has_the_same_int8_features_in_every_batch(
    artifacts: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(artifacts, tmp_path / "with int8"))
    write_int8(folder / vision_encoder_file("float32"), folder / vision_encoder_file("int8"))
    encoder = load_encoder(folder, 1, "int8")
    pixels = random_pixels(3)
    pixels[1] //= 64  # another range of values than its neighbours
    together = encoder.encode(pixels)
    for index, image in enumerate(pixels):
        assert torch.equal(encoder.encode(image[None])[0], together[index])


class Session:
    """An encoder's session that records its runs and fails in some; `stale`: replays change
    nothing.
    """

    def __init__(self, file: str, fault: "Fault", stale: bool = False) -> None:
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        self._fault = fault
        self._stale = stale
        self._num_runs = 0
        self.graph_ids: list[int] = []
        self.threads: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: onnxruntime.RunOptions) -> None:
        graph_id = int(options.get_run_config_entry("gpu_graph_id"))
        self._num_runs += 1
        if error := self._fault(self._num_runs, graph_id):
            raise RuntimeError(*error.args)  # a new one: its traceback holds this session
        self.threads.add(threading.get_ident())
        self.graph_ids.append(graph_id)
        is_replay = graph_id > 0 and self.graph_ids.count(graph_id) > 1
        if not (is_replay and self._stale):
            self._session.run_with_iobinding(binding, options)


Fault = Callable[[int, int], Exception | None]  # arguments: the numbers of a run and of its graph


@dataclass
class Sessions:
    """Opens sessions; those with graphs may be refused, have faults, or replay stale features."""

    file: str
    fault: Fault = lambda *_: None
    stale: bool = False
    refusal: Exception | None = None
    # has graphs, and the number of sessions alive before
    opened: list[tuple[bool, int]] = field(default_factory=list)
    alive: weakref.WeakSet[Session] = field(default_factory=weakref.WeakSet)

    @property
    def session(self) -> Session:
        (session,) = self.alive
        return session

    def open(self, with_graphs: bool) -> Any:
        self.opened.append((with_graphs, len(self.alive)))
        if with_graphs and self.refusal:
            raise self.refusal
        session = Session(self.file, self.fault, stale=self.stale and with_graphs)
        self.alive.add(session)
        return session


@pytest.fixture
def encoder_file(exported: ModelStore) -> str:
    return str(exported.newest("florence-2-mini") / VISION_ENCODER_FILE)


def loaded(sessions: Sessions) -> CudaEncoder:
    encoder = CudaEncoder(sessions.open, CudaOptions(8, name=NAME), HostMemory)
    encoder.load()
    return encoder


def check_features(encoder: CudaEncoder, encoder_file: str) -> None:
    """Compare batches of several sizes with those of the encoder of the CPU."""
    reference = load_encoder(Path(encoder_file).parent)
    for num_images in (1, 13):
        pixels = random_pixels(num_images)
        features = encoder.encode(pixels)
        torch.testing.assert_close(features, reference.encode(pixels), atol=ROUNDING, rtol=0)
        _, means = encoder.encode_batch([Encoding(image, None) for image in pixels])
        torch.testing.assert_close(means, features.sum(1) / features.shape[1])


def test_captures_follow_all_runs_and_checks_all_captures(artifacts: Path) -> None:
    """A capture may not allocate, and may change the memory of those before."""
    encoder_file = str(artifacts / VISION_ENCODER_FILE)
    sessions = Sessions(encoder_file)
    encoder = loaded(sessions)
    assert (encoder.sizes, encoder.captured_sizes) == ([8, 4, 2, 1], [8, 4, 2, 1])
    assert sessions.session.graph_ids == [-1] * 4 + [8, 4, 2, 1] + [8, -1, 4, -1, 2, -1, 1, -1]
    check_features(encoder, encoder_file)
    assert sessions.session.graph_ids[-3:] == [8, 4, 1]


@pytest.mark.parametrize("num_images", [2, 3])  # one part, and two
@pytest.mark.parametrize("is_fixed", [False, True])
def test_features_do_not_change_with_later_batches(
    encoder_file: str, num_images: int, is_fixed: bool
) -> None:
    encoder = load_encoder(Path(encoder_file).parent)
    encode = loaded(Sessions(encoder_file)).encode if is_fixed else encoder.encode
    features = encode(random_pixels(num_images))
    copy = features.clone()
    assert not torch.equal(encode(255 - random_pixels(num_images)), copy)
    assert torch.equal(features, copy)


def test_batches_run_in_the_thread_that_captured(encoder_file: str) -> None:
    sessions = Sessions(encoder_file)
    encoder = loaded(sessions)
    with ThreadPoolExecutor(3) as callers:
        features = list(callers.map(encoder.encode, [random_pixels(1)] * 6))
    assert all(torch.equal(one, features[0]) for one in features)
    assert len(sessions.session.threads) == 1
    assert threading.get_ident() not in sessions.session.threads


def fail_at(number: int, graph_id: int, error: Exception) -> Fault:
    return lambda *run: error if run == (number, graph_id) else None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refusal": REFUSED}, str(REFUSED)),
        ({"fault": fail_at(6, 4, INVALIDATED)}, str(INVALIDATED)),
        ({"stale": True}, "other features"),
    ],
    ids=["refused", "failed capture", "stale replay"],
)
def test_failed_graphs_leave_all_sizes_without(
    encoder_file: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    message: str,
) -> None:
    parts: list[str] = []  # whose device was tried
    monkeypatch.setattr(session, "exit_if_device_lost", lambda _, part: parts.append(part))
    sessions = Sessions(encoder_file, **options)
    encoder = loaded(sessions)
    assert sessions.opened == [(True, 0), (False, 0)]  # the weights are never on the device twice
    assert (encoder.sizes, encoder.captured_sizes) == ([8, 4, 2, 1], [])
    check_features(encoder, encoder_file)
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    (warning,) = [record.getMessage() for record in warnings]
    assert parts == [NAME]
    assert warning.startswith(f"{NAME} runs without CUDA graphs: {message}")


def test_a_size_that_exceeds_the_memory_is_left_out(
    encoder_file: str, caplog: pytest.LogCaptureFixture
) -> None:
    sessions = Sessions(encoder_file, fail_at(1, -1, NO_MEMORY))
    encoder = loaded(sessions)
    assert (encoder.sizes, encoder.captured_sizes) == ([4, 2, 1], [4, 2, 1])
    check_features(encoder, encoder_file)
    assert sessions.session.graph_ids[-4:] == [4, 4, 4, 1]
    assert f"{NAME}: too little memory for batches of 8 images: {NO_MEMORY}" in caplog.text


def test_a_single_image_that_exceeds_the_memory_ends_the_start(encoder_file: str) -> None:
    with pytest.raises(RuntimeError, match="smaller than requested"):
        loaded(Sessions(encoder_file, lambda *_: NO_MEMORY))


OPTIONS = runner_options("florence-2-mini", Settings(encoder_precision="float32"), ())


def worker_of(exported: ModelStore, **changes: Any) -> EncoderWorker:
    """Return a loaded worker, of options and a manifest with these changes."""
    folder = exported.newest("florence-2-mini")
    manifest = read_manifest(folder)
    if "image_size_wh" in changes:
        manifest = replace(manifest, image_size_wh=changes.pop("image_size_wh"))
    worker = EncoderWorker(manifest, replace(OPTIONS, **changes), "cpu")
    worker.load(folder, 1)
    return worker


def test_a_gpu_gets_the_provider_of_the_setting(
    exported: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    providers: list[str] = []

    def load(*arguments: Any) -> SimpleNamespace:
        providers.append(arguments[-1].provider)
        return SimpleNamespace(encode=len)

    monkeypatch.setattr(session, "load_encoder", load)
    settings = Settings(encoder_provider="tensorrt")
    worker_of(exported, encoder_provider=runner_options("a", settings, ()).encoder_provider)
    assert providers == ["tensorrt"]


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider' is not in available")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "without its CUDAExecutionProvider; install onnxruntime-gpu"),
        ({"image_size_wh": (64, 64)}, "invalid dimensions"),  # not that of the graph
    ],
)
def test_an_encoder_that_cannot_run_ends_the_start(
    exported: ModelStore, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        worker_of(exported, **changes)


def test_a_failed_batch_is_encoded_one_by_one(
    exported: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception] = []  # after which the device was tried
    monkeypatch.setattr(session, "exit_if_device_lost", lambda error, _: errors.append(error))
    worker: Any = worker_of(exported)
    sizes: list[int] = []

    def encode(images: Sequence[Pixels]) -> torch.Tensor:
        sizes.append(len(images))
        assert worker.watchdog.started_s is not None
        if len(images) > 1 or images[0].max() == 2:
            raise RuntimeError("failed to allocate memory")
        return torch.full((1, 3, 4), float(images[0].max()))

    worker._encoder.encode = encode
    batch = [Encoding(np.full((4, 4, 3), value, np.uint8), None) for value in (1, 2, 3)]
    failed = [outcome.failed for outcome in worker.encode(batch)]
    assert (sizes, len(errors)) == ([3, 1, 1, 1], 2)
    message = "the vision encoder failed: RuntimeError"
    assert failed == [None, Failed(code="internal", message=message), None]
    features = [encoding.features for encoding in batch]
    assert [None if value is None else int(value.max()) for value in features] == [1, None, 3]
    embeddings = [base64.b64decode(encoding.embedding) for encoding in batch]
    of_one, of_three = (np.full(4, value, "<f4").tobytes() for value in (1, 3))
    assert embeddings == [of_one, b"", of_three]
    assert worker.watchdog.started_s is None
