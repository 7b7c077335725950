"""Progress of an export on standard error: a bar on a terminal, else one line for each step."""

import sys
import time
from typing import Self, TextIO

from tqdm import tqdm

NUM_STEPS = 10  # most models


class Progress:
    """The steps of one export, announced one by one; `num_steps` are expected."""

    def __init__(self, model_id: str, num_steps: int, stream: TextIO = sys.stderr) -> None:
        self._model_id = model_id
        self._num_steps = num_steps
        self._stream = stream
        self._start_s = time.monotonic()
        self._bar = (
            tqdm(total=num_steps, unit="step", file=stream, leave=False)
            if stream.isatty()
            else None
        )
        self._num_begun = 0

    def begin(self, step: str) -> None:
        """Announce a step, which ends the one before it."""
        self._num_begun += 1
        if self._bar is None:
            elapsed_s = time.monotonic() - self._start_s
            print(f"{self._model_id}: {step} ({elapsed_s:.0f} s)", file=self._stream, flush=True)
            return
        self._bar.n = self._num_begun - 1
        self._bar.total = max(self._num_steps, self._num_begun)
        self._bar.set_description(f"{self._model_id}: {step}")  # draws the bar

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.close()


def silence_transformers() -> None:
    """Show neither warnings nor bars of transformers, which would break into the progress."""
    from transformers.utils import logging  # imports torch, which takes seconds

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
