"""The size of a checkpoint and the released model that it descends from, read from its files.

A catalog entry describes a checkpoint; here the entry is compared with the checkpoint, or made of
it for a repository of the hub that has none.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from export.checkpoints.sources import check_config, fetch_config, read_config
from export.errors import SourceError
from tasks.catalog import (
    CatalogEntry,
    adapter_entry,
    entry_row,
    hub_model_id,
    load_catalog,
    parse_entry,
)
from wire.artifacts.adapter_folder import read_config as read_adapter_config
from wire.artifacts.manifest import CONFIG_FILE

ROOT = Path(__file__).parents[2]
CATALOG_FILE = ROOT / "models" / "catalog.yaml"

# (family, hidden size of the language model) -> an id of the catalog, up to the resolution
_BASES = {
    ("florence2", 768): "florence-2-base",
    ("florence2", 1024): "florence-2-large",
    ("paligemma", 2048): "paligemma-3b-pt-{}",
    ("paligemma", 2304): "paligemma-2-3b-pt-{}",
    ("paligemma", 3584): "paligemma-2-10b-pt-{}",
    ("paligemma", 4608): "paligemma-2-28b-pt-{}",
}
_ANY_BASE = {"florence2": "florence-2-base", "paligemma": "paligemma-3b-pt-224"}
_DEFAULT_WIDTH = 1024  # Microsoft's configuration omits it
_DEFAULT_SIDE_PX = 224
_MAX_ID_CHARS = 63  # limit of names in BentoML's store
_UNKNOWN_DATE = "1970-01"
_PAGE = "https://huggingface.co/"


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """The numbers of a catalog entry that a checkpoint decides."""

    parameters: int
    context_window: int
    resolution: int

    def check(self, entry: CatalogEntry, source_name: str) -> None:
        """Raise `SourceError` if `entry` says otherwise: the checkpoint is another model."""
        expected = CheckpointFacts(entry.parameters, entry.context_window, entry.resolution)
        if self != expected:
            raise SourceError(
                f"{source_name} has {self}; the catalog's entry {entry.id} has {expected}: add an"
                " entry for it"
            )

    def applied_to(self, entry: CatalogEntry) -> CatalogEntry:
        return replace(entry, **asdict(self))


def base_entry(config: Mapping[str, Any]) -> CatalogEntry:
    """Return the catalog's entry of the released model with the widths of a `config.json`."""
    family = config["model_type"]
    text = config["text_config"]
    width = text.get("d_model") or text.get("hidden_size") or _DEFAULT_WIDTH
    side = config["vision_config"].get("image_size") or _DEFAULT_SIDE_PX
    catalog = load_catalog(CATALOG_FILE)
    name = _BASES.get((family, width), "").format(side)
    return catalog[name if name in catalog else _ANY_BASE[family]]


def hub_model_entry(repository: str, revision: str | None) -> CatalogEntry:
    """Return the entry of a repository of either family, or of an adapter; raise `SourceError`."""
    source = fetch_config(repository, revision)
    if not (source.folder / CONFIG_FILE).is_file():
        return _hub_adapter_entry(repository, source.folder)
    config = read_config(source)
    family: Any = config["model_type"]
    if family not in _ANY_BASE:
        raise SourceError(
            f"{repository} is a checkpoint of {family}; allowed: {', '.join(_ANY_BASE)}"
        )
    check_config(source, config, family)
    return hub_entry(repository, config)


def hub_entry(repository: str, config: Mapping[str, Any]) -> CatalogEntry:
    """Return the entry of a repository, `owner/name`: the catalog's, or one made of its
    configuration.

    Its numbers are its base's until the weights are there. Raise `SourceError` for a long name.
    """
    for entry in load_catalog(CATALOG_FILE, _fine_tunes(repository)).values():
        if entry.source == repository:
            return replace(entry, id=hub_model_id(repository))
    row = {**entry_row(base_entry(config)), **_repository_row(repository)}
    row |= {"revision": None, "weights_sha256": None, "aliases": [], "forced_names": False}
    return parse_entry(row)


def _fine_tunes(name: str) -> list[str]:
    """Return the id that a repository of Google's may have in an entry with a `*`."""
    owner, _, model_id = name.rpartition("/")
    return [model_id.lower()] if owner in ("", "google") else []


def _repository_row(repository: str) -> dict[str, object]:
    model_id = hub_model_id(repository)
    if len(model_id) > _MAX_ID_CHARS:
        raise SourceError(
            f"the id {model_id} has more than {_MAX_ID_CHARS} characters: give {repository} a"
            " catalog entry with a shorter one"
        )
    return {
        "id": model_id,
        "source": repository,
        "organization": repository.partition("/")[0],
        "license": f"see {_PAGE}{repository}",
        "release_date": _UNKNOWN_DATE,
        "features": [],
    }


def _hub_adapter_entry(repository: str, folder: Path) -> CatalogEntry:
    """Return the entry of an adapter over the one with its base's name as id, source or alias."""
    name = read_adapter_config(folder).get("base_model_name_or_path")
    for entry in load_catalog(served_catalog(), _fine_tunes(str(name))).values():
        if entry.adapter_of is None and name in (entry.id, entry.source, *entry.aliases):
            row = _repository_row(repository)
            return adapter_entry(str(row.pop("id")), str(row.pop("source")), row, entry)
    raise SourceError(
        f"{repository} is a LoRA adapter of {name}, which the catalog does not have: add an entry"
        " with adapter_of"
    )


def served_catalog() -> Path:
    return Path(os.environ.get("DIPTYCH_CATALOG", CATALOG_FILE))


def is_hub_entry(entry: CatalogEntry) -> bool:
    """Return True for an entry of `hub_entry`, which no catalog has."""
    return entry.id == hub_model_id(entry.source)
