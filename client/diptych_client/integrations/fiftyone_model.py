"""A model of FiftyOne: `dataset.apply_model(DiptychModel("object_detection"), "florence2")`.

Needs the extra `fiftyone`. The model's calls run concurrently up to FiftyOne's `batch_size`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych_client.clients.client import Client
from diptych_client.requests import AnswerOptions, TaskParameters, read_api_key

_MAX_CONCURRENT = 16


class DiptychModel(fom.SamplesMixin, fom.Model):  # type: ignore[misc]  # FiftyOne has no types
    """One task of one served model, by default of the first that offers the task.

    `parameters` are the task's: `labels`, `phrase`, `question` … `timeout_s` is that of one image.
    """

    def __init__(
        self,
        task: str,
        model: str | None = None,
        *,
        min_score: float = 0.0,
        url: str = "http://localhost:3000",
        api_key_file: str | None = None,
        timeout_s: float = 60.0,
        **parameters: Any,
    ) -> None:
        super().__init__()
        api_key = None if api_key_file is None else read_api_key(Path(api_key_file))
        self._client = Client(url, api_key=api_key, timeout_s=timeout_s)
        self._task = task
        self._model = model
        self._parameters = TaskParameters(**parameters)
        self._options = AnswerOptions(min_score=min_score)

    @property
    def media_type(self) -> str:
        return "image"

    @property
    def ragged_batches(self) -> bool:
        return True  # images of a batch differ in size

    @property
    def transforms(self) -> None:
        return None

    @property
    def preprocess(self) -> bool:
        return False

    def predict(self, arg: NDArray[np.uint8], sample: Any = None) -> fol.Label:
        """Return the labels of an image (H, W, 3); the file of `sample` is sent if there is one."""
        image = Image.fromarray(arg) if sample is None else Path(sample.filepath)
        answer = self._client.predict(
            image, self._task, self._parameters, model=self._model, options=self._options
        )
        return answer.to_fiftyone()

    def predict_all(
        self, args: Sequence[NDArray[np.uint8]], samples: Sequence[Any] | None = None
    ) -> list[fol.Label]:
        """Return the labels of each image; raise the first error."""
        with ThreadPoolExecutor(min(len(args), _MAX_CONCURRENT)) as threads:
            return list(threads.map(self.predict, args, samples or [None] * len(args)))
