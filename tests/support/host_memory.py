"""Staged images of an encoder, on a CPU."""

import torch
from torch import Tensor

from runners.encoder.session import CudaMemory
from wire.artifacts.manifest import Device
from wire.pixels import Pixels


class HostMemory(CudaMemory):
    """Memory of the host, in which every copy is complete at once."""

    device: Device = "cpu"

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._pixels = torch.zeros(shape, dtype=torch.uint8)

    def stage(self, place: int, image: Pixels) -> int:
        self._pixels[place] = torch.from_numpy(image.copy())
        return place

    def load(self, place: int, model_input: Tensor) -> None:
        model_input.copy_(self._pixels[place])

    def to_host(self, values: Tensor) -> Tensor:
        return values

    def wait(self) -> None:
        pass
