from pathlib import Path
from typing import Any

import pytest

from wire.artifacts.devices import (
    decoder_device,
    encoder_device,
    has_cuda_card,
    has_cuda_provider,
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
        (FakeDriver(0), False),
        (FakeDriver(1, status=100), False),
    ],
    ids=["one GPU", "two GPUs", "all hidden", "driver without GPU"],
)
def test_a_gpu_is_available_if_the_driver_counts_one(driver: FakeDriver, expected: bool) -> None:
    assert has_cuda_card(lambda _file: driver) is expected


def test_a_driver_that_is_too_old_means_the_cpu_with_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = FakeDriver(1, version=12080)
    assert [has_cuda_card(load) for load in [lambda _file: driver] * 2] == [False, False]
    assert caplog.messages == [
        "NVIDIA's driver supports CUDA 12.8, and torch and ONNX Runtime need 13.0: the models run"
        " on the CPU; install driver 580 or later"
    ]


def test_without_a_driver_no_gpu_is_available() -> None:
    assert not has_cuda_card(no_driver)


def test_a_device_set_by_the_operator_is_not_checked() -> None:
    assert (encoder_device("cpu"), decoder_device("cpu")) == ("cpu", "cpu")
    assert (encoder_device("cuda"), decoder_device("cuda")) == ("cuda", "cuda")


def test_a_build_without_cuda_has_no_cuda_provider() -> None:
    assert not has_cuda_provider()


def test_torch_has_cuda_if_it_has_the_library_whatever_its_version(tmp_path: Path) -> None:
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
def test_the_index_of_a_gpu_counts_the_visible_ones(
    visible: str | None, index: int, expected: str
) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    select_gpu(index, environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == expected


def test_a_gpu_that_is_not_visible_is_refused() -> None:
    with pytest.raises(
        RuntimeError, match=r"^cuda:1 is requested, but CUDA_VISIBLE_DEVICES=0 shows 1 GPUs$"
    ):
        select_gpu(1, {"CUDA_VISIBLE_DEVICES": "0"})


@pytest.mark.parametrize(
    ("setting", "hidden_size", "expected"),
    [(0, 128, 1), (0, 768, 4), (3, 128, 3), (3, 768, 3), (0, 512, 4)],
)
def test_a_wide_model_gets_all_cores_unless_threads_are_set(
    setting: int, hidden_size: int, expected: int
) -> None:
    assert num_threads(setting, hidden_size, num_cores=4) == expected
