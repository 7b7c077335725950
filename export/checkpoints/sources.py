"""Checkpoint sources: a local folder, or a Hugging Face repository at one commit.

No code of a repository is fetched. Pickled weights are only fetched where there are no safetensors.
A refusal names the files that are there instead, and what to do with them.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from safetensors import SafetensorError, safe_open

from export.checkpoints.bases import adapter_error, base_entry, hub_adapter_entry, hub_entry
from export.checkpoints.hub import fetch_file, fetch_snapshot, list_files
from export.errors import SourceError
from tasks.catalog import CatalogEntry
from wire.artifacts.adapter_folder import CONFIG_FILE as ADAPTER_CONFIG_FILE
from wire.artifacts.manifest import CONFIG_FILE, TOKENIZER_FILE, Family, sha256_of

WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
# In the order in which transformers looks for them (modeling_utils.py,
# _get_resolved_checkpoint_files); other files, such as averaged weights, are not read.
_WEIGHTS_ROOTS = (WEIGHTS_FILE, WEIGHTS_INDEX_FILE, PICKLED_FILE, PICKLED_INDEX_FILE)
SETTINGS_FILES = (
    CONFIG_FILE,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(
    r"hf://(?P<space>spaces/)?(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>[^#]+)(?:#sha256=(?P<sha256>[0-9a-f]{64}))?"
)
_OWN_VISION_TYPE = "florence_vision"
_MICROSOFT_VISION_TYPES = ("davit", "", None, "florence2_vision")
_SMALL_FLOATS = ("F8", "F6", "F4")  # safetensors' names of fp8 and smaller types begin so
_GIVE_ORIGINAL = "give the checkpoint in safetensors that it was made from as --source"
_SAVE_PRETRAINED = (
    "load it in the program that wrote it, call save_pretrained(FOLDER) of model and processor, and"
    " give FOLDER as --source"
)
# Files of other programs: pattern, what a file is, and what to do.
_OTHER_FORMS = (
    (
        r"checkpoint-\d+/.+",
        "a checkpoint of a training below it",
        "give the folder of one, downloaded if it is on the hub, as --source",
    ),
    (
        r".*\.npz",
        "a checkpoint of big_vision",
        "run transformers' models/paligemma/convert_paligemma_weights_to_hf.py (PaliGemma 2:"
        " convert_paligemma2_weights_to_hf.py) on it, and give the new folder as --source",
    ),
    (r".*\.gguf", "a quantised model of llama.cpp", _GIVE_ORIGINAL),
    (r".*\.onnx", "an ONNX graph", f"the export makes its own; {_GIVE_ORIGINAL}"),
    (r"(.*/)?openvino[^/]*\.xml", "a graph of OpenVINO", _GIVE_ORIGINAL),
    (
        r".*\.ckpt",
        "a checkpoint of Lightning",
        "save its state_dict alone, by torch.save, as pytorch_model.bin beside the files of its"
        " base",
    ),
    (r".*\.pth?", "a file of torch", _SAVE_PRETRAINED),
    (
        r"adapter_model\.bin",
        "a pickled adapter",
        "load it with PEFT and call save_pretrained(FOLDER), which writes"
        " adapter_model.safetensors",
    ),
)


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

    def other_form(self) -> str | None:
        """Return the first file of another program, what it is and what to do; None if none is.

        Of a hub id, all files are looked at, also those that are not fetched.
        """
        if self.revision is not None:
            return _other_form(list_files(self.name, self.revision))
        files = [*self.folder.glob("*"), *self.folder.glob("*/*")]
        return _other_form(sorted(str(path.relative_to(self.folder)) for path in files))

    def hashes(self) -> dict[str, str]:
        """Return the sha256 of each file by name; this reads every shard."""
        return {path.name: sha256_of(path) for path in self.files()}


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's tensors, those that transformers reads.

    Raise `SourceError` for an invalid index.
    """
    root = _weights_root(folder)
    if root is None or root.suffix != ".json":
        return [root] if root else []
    try:
        names = {*json.loads(root.read_text(encoding="utf-8"))["weight_map"].values()}
        if any(Path(name).name != name for name in names):
            raise ValueError("a file in another folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{root.name} is not an index of weights: {error!r}") from error
    return [folder / name for name in sorted(names)]


def _weights_root(folder: Path) -> Path | None:
    """Return the file of all tensors, or the index of their files."""
    return next((path for path in map(folder.joinpath, _WEIGHTS_ROOTS) if path.is_file()), None)


def _other_form(names: Sequence[str]) -> str | None:
    for pattern, description, remedy in _OTHER_FORMS:
        for name in names:
            if re.fullmatch(pattern, name):
                return f"{name}, {description}: {remedy}"
    return None


def resolve_source(name: str, revision: str | None, family: Family, root: Path) -> Source:
    """Return the checkpoint `name`: a folder, relative to `root`, or a hub id at `revision`.

    Raise `SourceError` if it is neither, cannot be fetched, is incomplete or belongs to another
    family.
    """
    if (root / name).is_dir():
        if revision is not None:
            raise SourceError(f"{name} is a folder and has no revisions; given: {revision}")
        source = Source(name, None, root / name)
    elif other := _other_form([Path(name).name]):
        raise SourceError(f"{name} is {other}")
    elif _HUB_ID.fullmatch(name):
        source = _fetch_checkpoint(name, revision, family)
    else:
        raise SourceError(f"{name} is neither a folder nor a hub id of the form owner/name")
    _check_complete(source)
    config = read_config(source)
    _check_family(source, config, family)
    _check_processor(source, config)
    for path in source.weights():
        if path.suffix == ".safetensors":
            _check_tensors(path, name)
    return source


def _check_complete(source: Source) -> None:
    missing = [] if (source.folder / CONFIG_FILE).is_file() else [CONFIG_FILE]
    weights = source.weights()
    if not weights and (source.folder / ADAPTER_CONFIG_FILE).is_file():
        raise adapter_error(source.name, source.folder, source.revision is not None)
    if not weights:
        missing.append(f"{WEIGHTS_FILE} or {PICKLED_FILE}")
    missing += [path.name for path in weights if not path.is_file()]
    if missing:
        other = source.other_form()
        instead = f"; it has {other}" if other else ""
        raise SourceError(f"{source.name} lacks {', '.join(missing)}{instead}")


def read_config(source: Source) -> dict[str, Any]:
    """Return the `config.json` of a checkpoint, which names its model's type.

    Raise `SourceError`.
    """
    try:
        config: dict[str, Any] = json.loads((source.folder / CONFIG_FILE).read_text("utf-8"))
        config["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{CONFIG_FILE} of {source.name} has no model_type: {error!r}") from error
    return config


def _check_family(source: Source, config: Mapping[str, Any], family: Family) -> None:
    if config["model_type"] != family:  # the families' names are transformers' names
        raise SourceError(
            f"{source.name} is a checkpoint of {config['model_type']}; the catalog expects {family}"
        )
    for part in ("vision_config", "text_config"):
        if not isinstance(config.get(part), dict):
            raise SourceError(f"{CONFIG_FILE} of {source.name} must have an object as {part}")
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


def _check_processor(source: Source, config: Mapping[str, Any]) -> None:
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
            f" base {base_entry(config).source}, or save them with the processor that it was tuned"
            " with"
        )


def _check_tensors(path: Path, name: str) -> None:
    """Raise `SourceError` for a damaged file, or a tensor in fp8."""
    try:
        with safe_open(path, "numpy") as tensors:
            dtypes = {key: tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SourceError(f"{path.name} of {name} is damaged or incomplete: {error}") from error
    for key, dtype in dtypes.items():
        if dtype.startswith(_SMALL_FLOATS):
            raise SourceError(
                f"{key} of {name} is stored in {dtype}; allowed are float32, bfloat16 and float16:"
                " give the checkpoint from before its conversion to fp8"
            )


def resolve_file(name: str, source: Source) -> Path:
    """Return the file `name` of the checkpoint's folder, or a hub file
    `hf://[spaces/]owner/name/file[#sha256=…]`; raise `SourceError` if its hash is another.
    """
    match = _HUB_FILE.fullmatch(name)
    if match is None:
        if not (source.folder / name).is_file():
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


def hub_model_entry(repository: str, revision: str | None) -> CatalogEntry:
    """Return the entry of a repository of either family, or of an adapter; raise `SourceError`."""
    if not _HUB_ID.fullmatch(repository):
        raise SourceError(f"{repository} is not a hub id of the form owner/name")
    source = _fetch_config(repository, revision)
    if not (source.folder / CONFIG_FILE).is_file():
        return hub_adapter_entry(repository, source.folder)
    config = read_config(source)
    family: Any = config["model_type"]
    if family not in get_args(Family):
        raise SourceError(
            f"{repository} is a checkpoint of {family}; allowed: {', '.join(get_args(Family))}"
        )
    _check_family(source, config, family)
    return hub_entry(repository, config)


def _fetch_config(repository: str, revision: str | None) -> Source:
    """Fetch the configuration of a checkpoint or of an adapter; raise `SourceError`."""
    folder = fetch_snapshot(repository, revision, [CONFIG_FILE, ADAPTER_CONFIG_FILE])
    source = Source(repository, folder.name, folder)
    if not any((folder / name).is_file() for name in (CONFIG_FILE, ADAPTER_CONFIG_FILE)):
        other = source.other_form()
        instead = f"; it has {other}" if other else ": it is not a checkpoint of transformers"
        raise SourceError(f"{repository} lacks {CONFIG_FILE}{instead}")
    return source


def _fetch_checkpoint(repository: str, revision: str | None, family: Family) -> Source:
    # The configuration first: a checkpoint that will be refused is not downloaded.
    source = _fetch_config(repository, revision)
    if not (source.folder / CONFIG_FILE).is_file():
        raise adapter_error(repository, source.folder, is_hub=True)
    _check_family(source, read_config(source), family)
    message = f"{repository}: fetching the files that are not in the hub's cache"
    print(message, file=sys.stderr, flush=True)
    fetch_snapshot(repository, source.revision, [*SETTINGS_FILES, WEIGHTS_FILE, WEIGHTS_INDEX_FILE])
    if not source.weights():
        fetch_snapshot(repository, source.revision, [PICKLED_FILE, PICKLED_INDEX_FILE])
    if shards := [path.name for path in source.weights() if not path.is_file()]:
        fetch_snapshot(repository, source.revision, shards)
    return source
