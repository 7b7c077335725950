"""Checkpoint sources: a local folder, or a Hugging Face repository at one commit.

Only safetensors and text files are fetched and read: no pickles, no remote code.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from export.checkpoints.errors import SourceError
from runners.artifacts.manifest import CONFIG_FILE, TOKENIZER_FILE, Family

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
    "model.safetensors.index.json",
)
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"hf://(?P<space>spaces/)?(?P<repository>[\w.-]+/[\w.-]+)/(?P<file>.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on the local disk."""

    name: str  # as given: a folder or a hub id
    revision: str | None  # the commit of a hub id; None for a folder
    folder: Path

    def files(self) -> Iterator[Path]:
        """Yield the files that the export reads, sorted by name."""
        for path in sorted(self.folder.iterdir()):
            if any(fnmatch(path.name, pattern) for pattern in CHECKPOINT_PATTERNS):
                yield path


def resolve_source(name: str, revision: str | None, family: Family, root: Path) -> Source:
    """Return the checkpoint `name`: a folder, relative to `root`, or a hub id at `revision`.

    Raise `SourceError` if it is neither, cannot be fetched, is incomplete or belongs to another family.
    """
    if (root / name).is_dir():
        if revision is not None:
            raise SourceError(f"{name} is a folder and has no revisions; given: {revision}")
        source = Source(name, None, root / name)
    elif _HUB_ID.fullmatch(name):
        source = _fetch(name, revision)
    else:
        raise SourceError(f"{name} is neither a folder nor a hub id of the form owner/name")
    _check_complete(source)
    _check_family(source, family)
    return source


def resolve_file(name: str, source: Source) -> Path:
    """Return the file `name` of the checkpoint's folder, or the hub file `hf://[spaces/]owner/name/file`."""
    if match := _HUB_FILE.fullmatch(name):
        return _fetch_file(match["repository"], match["file"], "space" if match["space"] else "model")
    if not (source.folder / name).is_file():
        raise SourceError(f"{source.name} does not contain {name}")
    return source.folder / name


def _check_complete(source: Source) -> None:
    names = {path.name for path in source.files()}
    missing = [name for name in (CONFIG_FILE, TOKENIZER_FILE) if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("model.safetensors")
    if missing:
        raise SourceError(f"{source.name} lacks {', '.join(missing)}")


def _check_family(source: Source, family: Family) -> None:
    try:
        model_type = json.loads((source.folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{CONFIG_FILE} of {source.name} has no model_type: {error!r}") from error
    if model_type != family:  # the families' names are transformers' names
        raise SourceError(f"{source.name} is a checkpoint of {model_type}; the catalog expects {family}")


def _fetch(repository: str, revision: str | None) -> Source:
    from huggingface_hub import HfApi, snapshot_download

    try:
        commit = revision if revision and _COMMIT.fullmatch(revision) else None
        commit = commit or HfApi().model_info(repository, revision=revision).sha
        folder = snapshot_download(repository, revision=commit, allow_patterns=list(CHECKPOINT_PATTERNS))
    except _hub_errors() as error:
        raise SourceError(f"cannot fetch {repository} at {revision or 'its newest commit'}: {error}") from error
    return Source(repository, commit, Path(folder))


def _fetch_file(repository: str, file_name: str, repository_type: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file_name, repo_type=repository_type))
    except _hub_errors() as error:
        raise SourceError(f"cannot fetch {file_name} of {repository}: {error}") from error


def _hub_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions of huggingface_hub: its own (OSError, ValueError) and those of its HTTP client."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or its successor

    return OSError, ValueError, httpx.HTTPError
