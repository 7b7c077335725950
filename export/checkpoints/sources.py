"""Checkpoint sources: a local folder, or a Hugging Face repository at one commit; and their forms,
all brought into one: transformers', in safetensors.

No code of a repository is fetched. Pickled weights are only fetched where there are no safetensors.
What is in the hub's cache on the local disk needs no network. huggingface_hub is imported when
something is fetched: it takes a second.
"""

import json
import logging
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from export.errors import SourceError, one_line
from wire.artifacts.adapter_folder import CONFIG_FILE as ADAPTER_CONFIG_FILE
from wire.artifacts.manifest import CONFIG_FILE, TOKENIZER_FILE, Family, sha256_of

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
# In the order in which transformers looks for them (modeling_utils.py,
# _get_resolved_checkpoint_files); other files, such as averaged weights, are not read.
_WEIGHTS_ROOTS = (WEIGHTS_FILE, WEIGHTS_INDEX_FILE, PICKLED_FILE, PICKLED_INDEX_FILE)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
SETTINGS_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    *_PROCESSOR_FILES,
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(
    r"hf://(?P<space>spaces/)?(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^#]+)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_PALIGEMMA_TOKENS = [f"<loc{index:04}>" for index in range(1024)]
_PALIGEMMA_TOKENS += [f"<seg{index:03}>" for index in range(128)]
_TRANSFORMERS_VISION_TYPE = "florence_vision"


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on the local disk."""

    name: str  # folder or hub id, as given
    revision: str | None  # the commit of a hub id; None for a folder
    folder: Path

    def files(self) -> list[Path]:
        """Return the files that the export reads, sorted by name."""
        files = {*self.weights(), *filter(None, [_weights_root(self.folder)])}
        for name in SETTINGS_FILES:
            if (self.folder / name).is_file():
                files.add(self.folder / name)
        return sorted(files)

    def weights(self) -> list[Path]:
        """Return the files with tensors, sorted by name."""
        return weight_files(self.folder)

    def missing_weights(self) -> list[str]:
        return [path.name for path in self.weights() if not path.is_file()]

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of each file by name; this reads every shard."""
        return {path.name: sha256_of(path) for path in self.files()}


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads tensors from; raise `SourceError`."""
    root = _weights_root(folder)
    if root is None or root.suffix != ".json":
        return [root] if root else []
    try:
        names = {*json.loads(root.read_text(encoding="utf-8"))["weight_map"].values()}
        if any(Path(name).name != name for name in names):
            raise ValueError("a file in another folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{root.name} is not an index of weights: {error!r}") from error
    return list(map(folder.joinpath, sorted(names)))


def _weights_root(folder: Path) -> Path | None:
    return next(filter(Path.is_file, map(folder.joinpath, _WEIGHTS_ROOTS)), None)


def resolve_source(name: str, revision: str | None, family: Family, root: Path) -> Source:
    """Return a folder, relative to `root`, or a hub id at `revision`; raise `SourceError`."""
    if (root / name).is_dir():
        if revision is not None:
            raise SourceError(f"{name} is a folder and has no revisions; given: {revision}")
        source = Source(name, None, root / name)
    else:
        # The configuration first: a checkpoint that will be refused is not downloaded.
        source = fetch_config(name, revision)
    if (source.folder / ADAPTER_CONFIG_FILE).is_file() and not _has(source, CONFIG_FILE):
        raise SourceError(
            f"{name} is a LoRA adapter: export its base, and add an entry with adapter_of to the"
            ' catalog (docs/models.md, "Serve a LoRA adapter")'
        )
    check_config(source, read_config(source), family)
    if source.revision is not None:
        _fetch_weights(source)
    _check_complete(source)
    return source


def fetch_config(repository: str, revision: str | None) -> Source:
    """Fetch the configuration of a checkpoint or of an adapter; raise `SourceError`."""
    if not _HUB_ID.fullmatch(repository):
        raise SourceError(f"{repository} is neither a folder nor a hub id of the form owner/name")
    folder = fetch_snapshot(repository, revision, [CONFIG_FILE, ADAPTER_CONFIG_FILE])
    return Source(repository, folder.name, folder)


def _fetch_weights(source: Source) -> None:
    message = f"{source.name}: fetching the files that are not in the hub's cache"
    print(message, file=sys.stderr, flush=True)

    def fetch(*patterns: str) -> None:
        fetch_snapshot(source.name, source.revision, patterns)

    fetch(*SETTINGS_FILES, WEIGHTS_FILE, WEIGHTS_INDEX_FILE)
    if not source.weights():
        fetch(PICKLED_FILE, PICKLED_INDEX_FILE)
    if shards := source.missing_weights():
        fetch(*shards)


def _has(source: Source, name: str) -> bool:
    return (source.folder / name).is_file()


def _check_complete(source: Source) -> None:
    missing = source.missing_weights()
    if not source.weights():
        missing.append(f"{WEIGHTS_FILE} or {PICKLED_FILE}")
    if not _has(source, TOKENIZER_FILE):
        missing.append(TOKENIZER_FILE)
    if not any(_has(source, name) for name in _PROCESSOR_FILES):
        missing.append(" or ".join(_PROCESSOR_FILES))
    if missing:
        raise SourceError(
            f"{source.name} lacks {', '.join(missing)}: save model and processor with"
            " save_pretrained, or copy the processor's files from the base"
        )


def read_config(source: Source) -> dict[str, Any]:
    """Return a checkpoint's `config.json`; raise `SourceError` if it names no type of model."""
    try:
        config: dict[str, Any] = json.loads((source.folder / CONFIG_FILE).read_text("utf-8"))
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{CONFIG_FILE} of {source.name} has no model_type: {error!r}") from error
    return config


def check_config(source: Source, config: Mapping[str, Any], family: Family) -> None:
    """Raise `SourceError` for a checkpoint of another family, and for quantised weights."""
    if config["model_type"] != family:  # the families' names are transformers' names
        raise SourceError(
            f"{source.name} is a checkpoint of {config['model_type']}; the catalog expects {family}"
        )
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), dict):
            raise SourceError(f"{CONFIG_FILE} of {source.name} must have an object as {part}")
    if config.get("quantization_config"):
        raise SourceError(
            f"{source.name} has quantised weights; allowed are float32, bfloat16 and float16"
        )


@contextmanager
def in_transformers_form(source: Source) -> Iterator[Source]:
    """Yield the checkpoint, or a temporary copy in transformers' form; raise `SourceError`."""
    is_pickled = source.weights()[0].suffix == ".bin"
    config = read_config(source)
    vision_type = config["vision_config"].get("model_type")
    is_microsoft = config["model_type"] == "florence2" and vision_type != _TRANSFORMERS_VISION_TYPE
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
        if config["model_type"] == "paligemma":
            source = _with_control_tokens(source, Path(scratch) / "control-tokens")
        yield source


def _with_control_tokens(source: Source, folder: Path) -> Source:
    """Return the checkpoint with the tokens that transformers' processor adds to its tokenizer.

    Some tokenizers hold locations and segmentations in their vocabulary only, as ordinary words.
    Source: transformers, models/paligemma/processing_paligemma.py, `PaliGemmaProcessor.__init__`.
    """
    tokenizer = Tokenizer.from_file(str(source.folder / TOKENIZER_FILE))
    image = AddedToken("<image>", normalized=False, special=True)
    num_added = tokenizer.add_special_tokens([image]) + tokenizer.add_tokens(_PALIGEMMA_TOKENS)
    if num_added == 0:
        return source
    folder.mkdir()
    names = {path.name for path in source.files()} - {TOKENIZER_FILE}
    for name in names:
        (folder / name).symlink_to((source.folder / name).absolute())
    tokenizer.save(str(folder / TOKENIZER_FILE))
    return replace(source, folder=folder)


def _unpickled(source: Source, scratch: Path) -> Source:
    folder = scratch / "safetensors"
    folder.mkdir()
    for name in SETTINGS_FILES:
        if (source.folder / name).is_file():
            (folder / name).symlink_to((source.folder / name).absolute())
    weights = source.weights()
    for path in weights:
        name = WEIGHTS_FILE if len(weights) == 1 else f"{path.stem}.safetensors"
        _write_safetensors(path, folder / name)
    if len(weights) > 1:
        index = (source.folder / PICKLED_INDEX_FILE).read_text(encoding="utf-8")
        renamed = index.replace('.bin"', '.safetensors"')
        (folder / WEIGHTS_INDEX_FILE).write_text(renamed, encoding="utf-8")
    return replace(source, folder=folder)


def _write_safetensors(pickled: Path, output: Path) -> None:
    """Write a pickled file's tensors; raise `SourceError` if it has other content or is damaged.

    Source: transformers, modeling_utils.py, `load_state_dict`; files from before torch 1.6 are no
    archives, which torch cannot map.
    """
    import torch
    from safetensors.torch import save_file

    is_archive = zipfile.is_zipfile(pickled)
    tensors: dict[str, torch.Tensor] = {}
    try:
        loaded = torch.load(pickled, "cpu", weights_only=True, mmap=is_archive)  # noqa: TID251
        for name, tensor in loaded.items():  # safetensors writes no tied tensors
            tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        save_file(tensors, output, metadata={"format": "pt"})
    except Exception as error:  # the pickle decides what is raised
        raise SourceError(
            f"{pickled.name} is damaged or has other content than tensors by name:"
            f" {one_line(error)}"
        ) from error


def resolve_file(name: str, source: Source) -> Path:
    """Return the file `name` of the checkpoint's folder, or a hub file
    `hf://[spaces/]owner/name/file[#sha256=…]`; raise `SourceError` if its hash is another.
    """
    match = _HUB_FILE.fullmatch(name)
    if match is None:
        if not _has(source, name):
            raise SourceError(f"{source.name} does not contain {name}")
        return source.folder / name
    kind = "space" if match["space"] else "model"
    path = fetch_file(match["repository"], match["file"], kind)
    expected = match["sha256"]
    if expected is not None and (actual := sha256_of(path)) != expected:
        raise SourceError(
            f"{name.partition('#')[0]} has sha256 {actual}; the catalog expects {expected}. To use"
            f" it nevertheless: --mask-decoder {path}"
        )
    return path


def fetch_snapshot(repository: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Return the folder of matching files, whose name is the commit; raise `SourceError`."""
    from huggingface_hub import snapshot_download

    with _source_errors(f"{repository} at {revision or 'its newest commit'}"):
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(patterns)))


def fetch_file(repository: str, file_name: str, repository_type: str) -> Path:
    """Return one file of the newest commit; raise `SourceError`."""
    from huggingface_hub import hf_hub_download

    with _source_errors(f"{file_name} of {repository}"):
        return Path(hf_hub_download(repository, file_name, repo_type=repository_type))


@contextmanager
def _source_errors(subject: str) -> Iterator[None]:
    """Turn any failure of huggingface_hub into a `SourceError` of one line.

    Its exceptions have no base class: hf_xet, for one, raises RuntimeError for a broken download.
    """
    from huggingface_hub.utils.tqdm import disable_progress_bars

    # it raises what it logs and warns of
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:
        raise SourceError(f"cannot fetch {subject}: {one_line(error)}") from error
