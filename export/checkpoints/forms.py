"""The forms of a checkpoint, all brought into one: transformers', in safetensors."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from export.checkpoints.pickled_weights import write_safetensors
from export.checkpoints.sources import (
    PICKLED_INDEX_FILE,
    SETTINGS_FILES,
    WEIGHTS_FILE,
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
    is_pickled = source.weights()[0].suffix == ".bin"
    is_microsoft = is_microsoft_form(source)
    with tempfile.TemporaryDirectory(prefix="diptych-checkpoint-") as scratch:
        if is_pickled:
            source = _unpickled(source, Path(scratch))
        if is_microsoft:
            # imports torch, which takes seconds
            from export.checkpoints.microsoft_form import write_transformers_form

            folder = Path(scratch) / "transformers"
            folder.mkdir()
            write_transformers_form(source.name, source.folder, source.weights(), folder)
            source = replace(source, folder=folder)
        yield source


def _unpickled(source: Source, scratch: Path) -> Source:
    folder = scratch / "safetensors"
    folder.mkdir()
    for name in SETTINGS_FILES:
        if (source.folder / name).is_file():
            (folder / name).symlink_to((source.folder / name).absolute())
    weights = source.weights()
    for path in weights:
        name = WEIGHTS_FILE if len(weights) == 1 else f"{path.stem}.safetensors"
        write_safetensors(path, folder / name)
    if len(weights) > 1:
        index = (source.folder / PICKLED_INDEX_FILE).read_text(encoding="utf-8")
        renamed = index.replace('.bin"', '.safetensors"')
        (folder / WEIGHTS_INDEX_FILE).write_text(renamed, encoding="utf-8")
    return replace(source, folder=folder)
