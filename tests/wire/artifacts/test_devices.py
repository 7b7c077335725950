from pathlib import Path
from typing import Any

import pytest

from wire.artifacts import devices
from wire.artifacts.devices import (
    EncoderProvider,
    choose_provider,
    has_cuda_card,
    has_cuda_torch,
    num_threads,
    select_gpu,
)


class FakeDriver:
    """The functions of libcuda that are called, on a machine with `num_gpus` GPUs."""

    def __init__(self, num_gpus: int, status: int = 0, version: int = 13000) -> None:
        self._num_gpus = num_gpus
        self._status = status
        self._version = version

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self._status

    def cuDeviceGetCount(self, pointer: Any) -> int:
        pointer._obj.value = self._num_gpus
        return 0

    def cuDriverGetVersion(self, pointer: Any) -> int:
        pointer._obj.value = self._version
        return 0


def no_driver(_file: str) -> Any:
    raise OSError("libcuda.so.1: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (FakeDriver(1), True),
        (FakeDriver(2), True),
        (FakeDriver(0), False),  # all hidden
        (FakeDriver(1, status=100), False),
    ],
)
def test_gpu_of_a_driver(driver: FakeDriver, expected: bool) -> None:
    assert has_cuda_card(lambda _file: driver) is expected
    assert not has_cuda_card(no_driver)


def test_old_driver_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    driver = FakeDriver(1, version=12080)
    assert [has_cuda_card(load) for load in [lambda _file: driver] * 2] == [False, False]
    (message,) = caplog.messages
    assert message.endswith("NVIDIA's driver is for CUDA 12.8; install 580 or later")


@pytest.mark.parametrize(
    ("setting", "capability", "has_tensorrt", "expected"),
    [
        ("auto", (7, 5), False, "cuda"),
        ("cuda", (12, 1), False, "cuda"),
        ("tensorrt", (9, 0), True, "tensorrt"),
        ("auto", (10, 0), True, "tensorrt"),
        ("auto", (7, 0), False, "the GPU's is 7.0; TensorRT does not load: "),
        ("tensorrt", (9, 0), False, "TensorRT does not load: "),
        ("cuda", (11, 0), True, "the GPU's is 11.0; install tensorrt-cu13"),
    ],
)
def test_provider_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
    setting: EncoderProvider,
    capability: tuple[int, int],
    has_tensorrt: bool,
    expected: str,
) -> None:
    if has_tensorrt:
        monkeypatch.setattr(devices, "_load_provider", lambda _: None)
    if " " not in expected:
        assert choose_provider(setting, capability) == expected
        return
    with pytest.raises(RuntimeError, match=f"DIPTYCH_ENCODER_PROVIDER={setting}: ") as refused:
        choose_provider(setting, capability)
    assert expected in str(refused.value)


def test_torch_has_cuda_with_its_library(tmp_path: Path) -> None:
    library = tmp_path / "torch" / "lib" / "libtorch_cuda.so"
    library.parent.mkdir(parents=True)
    (tmp_path / "torch" / "__init__.py").touch()
    paths = [str(tmp_path)]
    assert not has_cuda_torch(paths)
    library.touch()
    assert has_cuda_torch(paths)
    assert not has_cuda_torch([])


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [(None, 2, "2"), ("0,3", 1, "3"), ("GPU-8932f937, GPU-1", 0, "GPU-8932f937")],
)
def test_index_of_a_gpu(visible: str | None, index: int, expected: str) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    select_gpu(index, environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == expected


def test_hidden_gpu_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"cuda:1 is requested, but CUDA_VISIBLE_DEVICES is 0"):
        select_gpu(1, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize(
    ("setting", "hidden_size", "expected"),
    [(0, 128, 1), (0, 768, 4), (3, 128, 3), (3, 768, 3), (0, 512, 4)],
)
def test_threads(setting: int, hidden_size: int, expected: int) -> None:
    assert num_threads(setting, hidden_size, num_cores=4) == expected
