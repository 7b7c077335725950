"""Checkpoint sources: a local folder, or a Hugging Face repository at one commit.

No code of a repository is fetched. Pickled weights are only fetched where there are no safetensors.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from export.checkpoints.bases import base_entry
from export.checkpoints.errors import SourceError
from export.checkpoints.hub import fetch_file, fetch_snapshot
from wire.artifacts.manifest import CONFIG_FILE, TOKENIZER_FILE, Family, sha256_of

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
CHECKPOINT_PATTERNS = (
    CONFIG_FILE,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "model*.safetensors",
    WEIGHTS_INDEX_FILE,
)
PICKLED_PATTERNS = ("pytorch_model*.bin", PICKLED_INDEX_FILE)
_ALL_PATTERNS = (*CHECKPOINT_PATTERNS, *PICKLED_PATTERNS)
_BIG_VISION_SUFFIX = ".npz"
_CONVERSION = (
    "run transformers' models/paligemma/convert_paligemma_weights_to_hf.py (PaliGemma 2:"
    " convert_paligemma2_weights_to_hf.py) on it, and give the new folder as --source"
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(
    r"hf://(?P<space>spaces/)?(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^#]+)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_OWN_VISION_TYPE = "florence_vision"
_MICROSOFT_VISION_TYPES = ("davit", "", None, "florence2_vision")
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on the local disk."""

    name: str  # folder or hub id, as given
    revision: str | None  # the commit of a hub id; None for a folder
    folder: Path

    def files(self) -> Iterator[Path]:
        """Yield the files that the export reads, sorted by name."""
        paths = sorted(self.folder.iterdir())
        has_safetensors = any(fnmatch(path.name, "model*.safetensors") for path in paths)
        patterns = CHECKPOINT_PATTERNS if has_safetensors else _ALL_PATTERNS
        for path in paths:
            if any(fnmatch(path.name, pattern) for pattern in patterns):
                yield path

    def weights(self) -> list[Path]:
        """Return the files with tensors, sorted by name."""
        return [path for path in self.files() if path.suffix in (".safetensors", ".bin")]

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of each file by name; this reads every shard."""
        return {path.name: sha256_of(path) for path in self.files()}


def resolve_source(name: str, revision: str | None, family: Family, root: Path) -> Source:
    """Return the checkpoint `name`: a folder, relative to `root`, or a hub id at `revision`.

    Raise `SourceError` if it is neither, cannot be fetched, is incomplete or belongs to another
    family.
    """
    if (root / name).is_dir():
        if revision is not None:
            raise SourceError(f"{name} is a folder and has no revisions; given: {revision}")
        source = Source(name, None, root / name)
    elif name.endswith(_BIG_VISION_SUFFIX):
        raise _big_vision_error(name)
    elif _HUB_ID.fullmatch(name):
        source = fetch_checkpoint(name, revision, family)
    else:
        raise SourceError(f"{name} is neither a folder nor a hub id of the form owner/name")
    check_complete(source)
    _check_family(source, family)
    check_processor(source)
    for path in source.files():
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "numpy"):
                    pass
            except (SafetensorError, OSError) as error:
                raise SourceError(
                    f"{path.name} of {name} is damaged or incomplete: {error}"
                ) from error
    return source


def resolve_file(name: str, source: Source) -> Path:
    """Return the file `name` of the checkpoint's folder, or a hub file
    `hf://[spaces/]owner/name/file[#sha256=…]`.
    """
    if match := _HUB_FILE.fullmatch(name):
        path = fetch_file(
            match["repository"], match["file"], "space" if match["space"] else "model"
        )
        check_hash(path, name, match["sha256"])
        return path
    if not (source.folder / name).is_file():
        raise SourceError(f"{source.name} does not contain {name}")
    return source.folder / name


def check_hash(path: Path, name: str, expected: str | None) -> None:
    """Raise `SourceError` if `path`, fetched as `name`, has another sha256 than the catalog
    expects.
    """
    if expected is not None and (actual := sha256_of(path)) != expected:
        raise SourceError(
            f"{name.partition('#')[0]} has sha256 {actual}; the catalog expects {expected}. To use"
            f" it nevertheless: --mask-decoder {path}"
        )


def check_complete(source: Source) -> None:
    names = {path.name for path in source.files()}
    if CONFIG_FILE not in names and list(source.folder.glob(f"*{_BIG_VISION_SUFFIX}")):
        raise _big_vision_error(source.name)
    missing = [] if CONFIG_FILE in names else [CONFIG_FILE]
    if not source.weights():
        missing.append(f"{WEIGHTS_FILE} or pytorch_model.bin")
    for index in names & {WEIGHTS_INDEX_FILE, PICKLED_INDEX_FILE}:
        missing += sorted(set(_read_json(source, index, "weight_map").values()) - names)
    if missing:
        raise SourceError(f"{source.name} lacks {', '.join(missing)}")


def check_processor(source: Source) -> None:
    """Raise `SourceError` unless the tokenizer and the image processor are there: training scripts
    often save the model alone.
    """
    names = {path.name for path in source.files()}
    missing = [] if TOKENIZER_FILE in names else [TOKENIZER_FILE]
    if names.isdisjoint(_PROCESSOR_FILES):
        missing.append(" or ".join(_PROCESSOR_FILES))
    if missing:
        raise SourceError(
            f"{source.name} lacks {', '.join(missing)}: copy tokenizer.json, tokenizer_config.json,"
            " processor_config.json and preprocessor_config.json, those that there are, from its"
            f" base {base_entry(read_config(source)).source}, or save them with the processor that"
            " it was tuned with"
        )


def _big_vision_error(name: str) -> SourceError:
    return SourceError(
        f"{name} is a checkpoint of big_vision ({_BIG_VISION_SUFFIX}), which must be converted:"
        f" {_CONVERSION}"
    )


def _check_family(source: Source, family: Family) -> None:
    model_type = _read_json(source, CONFIG_FILE, "model_type")
    if model_type != family:  # the families' names are transformers' names
        raise SourceError(
            f"{source.name} is a checkpoint of {model_type}; the catalog expects {family}"
        )
    for part in ("vision_config", "text_config"):
        if not isinstance(_read_json(source, CONFIG_FILE, part), dict):
            raise SourceError(f"{CONFIG_FILE} of {source.name} must have an object as {part}")
    config = read_config(source)
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        raise SourceError(
            f"{source.name} has weights quantised by {method!r}; allowed are float32, bfloat16 and"
            " float16: save model.dequantize(), or merge an adapter of a quantised base into the"
            " base itself"
        )
    vision_type = config["vision_config"].get("model_type")
    if family == "florence2" and vision_type not in (_OWN_VISION_TYPE, *_MICROSOFT_VISION_TYPES):
        raise SourceError(
            f"{source.name} has vision_config.model_type {vision_type!r}; allowed:"
            f" {_OWN_VISION_TYPE} (transformers' form), davit or none (Microsoft's)"
        )


def is_microsoft_form(source: Source) -> bool:
    """Return True for a Florence-2 checkpoint in Microsoft's own form."""
    config = read_config(source)
    vision_type = config["vision_config"].get("model_type")
    return config["model_type"] == "florence2" and vision_type in _MICROSOFT_VISION_TYPES


def read_config(source: Source) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint that was resolved."""
    config: dict[str, Any] = json.loads((source.folder / CONFIG_FILE).read_text(encoding="utf-8"))
    return config


def _fetch_config(repository: str, revision: str | None) -> Source:
    folder = fetch_snapshot(repository, revision, [CONFIG_FILE])
    if not (folder / CONFIG_FILE).is_file():
        raise SourceError(
            f"{repository} has no {CONFIG_FILE}, so it is not a transformers checkpoint; one of"
            f" big_vision ({_BIG_VISION_SUFFIX}) must be converted: {_CONVERSION}"
        )
    return Source(repository, folder.name, folder)


def _read_json(source: Source, file_name: str, key: str) -> Any:
    try:
        return json.loads((source.folder / file_name).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{file_name} of {source.name} has no {key}: {error!r}") from error


def read_hub_config(repository: str, revision: str | None) -> dict[str, Any]:
    """Return the `config.json` of a repository of either family; raise `SourceError`."""
    if not _HUB_ID.fullmatch(repository):
        raise SourceError(f"{repository} is not a hub id of the form owner/name")
    source = _fetch_config(repository, revision)
    model_type = _read_json(source, CONFIG_FILE, "model_type")
    if model_type not in get_args(Family):
        raise SourceError(
            f"{repository} is a checkpoint of {model_type}; allowed: {', '.join(get_args(Family))}"
        )
    _check_family(source, model_type)
    return read_config(source)


def fetch_checkpoint(repository: str, revision: str | None, family: Family) -> Source:
    # The configuration first: a checkpoint that will be refused is not downloaded.
    source = _fetch_config(repository, revision)
    _check_family(source, family)
    print(
        f"{repository}: fetching the files that are not in the hub's cache",
        file=sys.stderr,
        flush=True,
    )
    fetch_snapshot(repository, source.revision, CHECKPOINT_PATTERNS)
    if not source.weights():
        fetch_snapshot(repository, source.revision, PICKLED_PATTERNS)
    return source
