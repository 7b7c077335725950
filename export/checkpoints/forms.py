"""The forms of a checkpoint, all brought into one: transformers', in safetensors."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from safetensors import safe_open

from export.checkpoints.pickled_weights import write_safetensors
from export.checkpoints.sources import (
    SETTINGS_FILES,
    WEIGHTS_FILE,
    WEIGHTS_INDEX_FILE,
    Source,
    is_microsoft_form,
)

# Prefixes of all names of a file: torch.compile's, DistributedDataParallel's, PEFT's, a trainer's
_WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "model.")
# Names of transformers' form begin with `model.` themselves
_PARTS = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.")
# Not one of them: the decoder before transformers 4.52, wrapped
_WRAPPED_DECODER = "model.language_model.model."


@contextmanager
def in_transformers_form(source: Source) -> Iterator[Source]:
    """Yield the checkpoint in transformers' form: itself, or a copy in the folder of temporary
    files, which is removed after the block.

    Raise `SourceError`.
    """
    weights = source.weights()
    is_pickled = weights[0].suffix == ".bin"
    is_microsoft = is_microsoft_form(source)
    if not is_pickled and not is_microsoft and not wrapper_of(_names(weights)):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="diptych-checkpoint-") as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        if is_pickled:
            weights = _unpickled(weights, Path(scratch) / "unpickled")
        if wrapper := wrapper_of(_names(weights)):
            weights = _unwrapped(weights, wrapper, Path(scratch) / "unwrapped")
        if is_microsoft:
            # imports torch, which takes seconds
            from export.checkpoints.microsoft_form import write_transformers_form

            write_transformers_form(source.name, source.folder, weights, folder)
        else:
            _link(source, weights, folder)
        yield replace(source, folder=folder)


def wrapper_of(names: Sequence[str]) -> str:
    """Return the wrappers that all names begin with, such as `_orig_mod.module.`."""
    is_plain = all(name.startswith(_PARTS) for name in names)
    is_plain = is_plain and not any(name.startswith(_WRAPPED_DECODER) for name in names)
    for wrapper in () if is_plain else _WRAPPERS:
        if all(name.startswith(wrapper) for name in names):
            return wrapper + wrapper_of([name.removeprefix(wrapper) for name in names])
    return ""


def _names(weights: Sequence[Path]) -> list[str]:
    names = list[str]()
    for path in weights:
        with safe_open(path, "numpy") as tensors:
            names += tensors.keys()
    return names


def _unpickled(weights: Sequence[Path], folder: Path) -> list[Path]:
    folder.mkdir()
    outputs = [folder / f"{path.stem}.safetensors" for path in weights]
    for path, output in zip(weights, outputs, strict=True):
        write_safetensors(path, output)
    return outputs


def _unwrapped(weights: Sequence[Path], wrapper: str, folder: Path) -> list[Path]:
    """Write copies of the files without the wrapper of their names."""
    # imports torch, which takes seconds
    from safetensors.torch import load_file, save_file

    folder.mkdir()
    for path in weights:
        stored = load_file(path)
        tensors = {name.removeprefix(wrapper): stored[name] for name in stored}
        save_file(tensors, folder / path.name, metadata={"format": "pt"})
    return [folder / path.name for path in weights]


def _link(source: Source, weights: Sequence[Path], folder: Path) -> None:
    """Link the settings and the weights into the folder, with an index if there are several."""
    for name in SETTINGS_FILES:
        if (source.folder / name).is_file():
            (folder / name).symlink_to((source.folder / name).absolute())
    if len(weights) == 1:
        (folder / WEIGHTS_FILE).symlink_to(weights[0])
        return
    places = dict[str, str]()
    for path in weights:
        (folder / path.name).symlink_to(path)
        places |= dict.fromkeys(_names([path]), path.name)
    index = {"metadata": {}, "weight_map": places}
    (folder / WEIGHTS_INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
