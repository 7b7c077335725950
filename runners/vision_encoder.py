"""The exported vision encoder, run by ONNX Runtime.

Shapes: B batch, H and W the one size it was exported for, N image tokens, C hidden. It knows nothing of batching.
"""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from runners.artifacts import VISION_ENCODER_FILE


class VisionEncoder:
    """Vision tower and projector of one model."""

    def __init__(self, folder: Path, num_threads: int = 0) -> None:
        self._file = folder / VISION_ENCODER_FILE
        self._num_threads = num_threads  # 0: ONNX Runtime decides
        self._session: onnxruntime.InferenceSession | None = None

    def load(self) -> None:
        """Load the graph, on CUDA where this ONNX Runtime and machine have it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self._session = onnxruntime.InferenceSession(str(self._file), options, providers=providers)

    @property
    def provider(self) -> str:
        """Name of the execution provider that runs the graph."""
        return str(self._loaded().get_providers()[0])

    def encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return image features (B, N, C) of resized RGB `pixels` (B, H, W, 3)."""
        (features,) = self._loaded().run(None, {"pixels": pixels})
        return np.asarray(features, dtype=np.float32)

    def _loaded(self) -> onnxruntime.InferenceSession:
        if self._session is None:
            raise RuntimeError("the vision encoder is not loaded; call load() first")
        return self._session
