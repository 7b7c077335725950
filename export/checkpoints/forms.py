"""The forms of a checkpoint, all brought into one: transformers', in safetensors."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.checkpoints.pickled_weights import write_safetensors
from export.checkpoints.sources import (
    PICKLED_INDEX_FILE,
    WEIGHTS_INDEX_FILE,
    Source,
    is_microsoft_form,
)


@contextmanager
def in_transformers_form(source: Source) -> Iterator[Source]:
    """Yield the checkpoint in transformers' form: itself, or a copy in the folder of temporary
    files, which is removed after the block.

    Raise `SourceError`.
    """
    pickled = [path for path in source.weights() if path.suffix == ".bin"]
    is_microsoft = is_microsoft_form(source)
    if not pickled and not is_microsoft:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="diptych-checkpoint-") as scratch:
        folder = Path(scratch) / "checkpoint"
        tensors = Path(scratch) / "tensors" if is_microsoft else folder
        for each in (folder, tensors):
            each.mkdir(exist_ok=True)
        weights = source.weights()
        if pickled:
            weights = _unpickle(pickled, tensors)
        if is_microsoft:
            # imports torch, which takes seconds
            from export.checkpoints.microsoft_form import write_transformers_form

            write_transformers_form(source.name, source.folder, weights, folder)
        else:
            for path in source.files():
                if path not in pickled and path.name != PICKLED_INDEX_FILE:
                    (folder / path.name).symlink_to(path.absolute())
        yield replace(source, folder=folder)


def _unpickle(pickled: Sequence[Path], folder: Path) -> list[Path]:
    """Write each file as safetensors, with an index if there are several; return their paths."""
    names = ["model.safetensors"]
    if len(pickled) > 1:
        names = [f"model-{index:05}.safetensors" for index in range(1, len(pickled) + 1)]
    written = [folder / name for name in names]
    places = dict[str, str]()
    for path, output in zip(pickled, written, strict=True):
        for name in write_safetensors(path, output):
            places[name] = output.name
    if len(pickled) > 1:
        index = {"metadata": {}, "weight_map": places}
        (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    return written
