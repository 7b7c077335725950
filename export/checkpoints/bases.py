"""The size of a checkpoint and the released model that it descends from, read from its files.

A catalog entry describes a checkpoint; here the entry is compared with the checkpoint, or made of
it for a repository of the hub that has none.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.errors import SourceError
from tasks.catalog import (
    HUB_PREFIX,
    CatalogEntry,
    adapter_entry,
    entry_row,
    hub_model_id,
    load_catalog,
    parse_entry,
)
from wire.artifacts.adapter_folder import CONFIG_FILE as ADAPTER_CONFIG_FILE

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
        differing = [
            f"{name} {getattr(self, name)} (the entry: {getattr(entry, name)})"
            for name in ("parameters", "context_window", "resolution")
            if getattr(self, name) != getattr(entry, name)
        ]
        if differing:
            raise SourceError(
                f"{source_name} is not what the catalog's entry {entry.id} describes: it has"
                f' {", ".join(differing)}; give it an entry of its own (docs/models.md, "Serve a'
                ' fine-tuned checkpoint")'
            )

    def applied_to(self, entry: CatalogEntry) -> CatalogEntry:
        """Return the entry with these numbers."""
        return replace(
            entry,
            parameters=self.parameters,
            context_window=self.context_window,
            resolution=self.resolution,
        )


def base_entry(config: Mapping[str, Any]) -> CatalogEntry:
    """Return the catalog's entry of the released model with the widths of a `config.json`."""
    family = config["model_type"]
    text = config["text_config"]
    width = text.get("d_model") or text.get("hidden_size") or _DEFAULT_WIDTH
    side = config["vision_config"].get("image_size") or _DEFAULT_SIDE_PX
    catalog = load_catalog(CATALOG_FILE)
    name = _BASES.get((family, width), "").format(side)
    return catalog[name if name in catalog else _ANY_BASE[family]]


def hub_entry(repository: str, config: Mapping[str, Any]) -> CatalogEntry:
    """Return the entry of a repository, `owner/name`: the catalog's, or one made of its
    configuration.

    Its numbers are its base's until the weights are there. Raise `SourceError`.
    """
    model_id = _checked_id(repository)
    for entry in load_catalog(CATALOG_FILE, _id_of_fine_tune(repository)).values():
        if entry.source == repository:
            return replace(entry, id=model_id)
    row = {**entry_row(base_entry(config)), **_repository_row(repository)}
    row |= {"revision": None, "weights_sha256": None, "aliases": [], "forced_names": False}
    return parse_entry(row)


def _id_of_fine_tune(name: str) -> tuple[str, ...]:
    """Return the id that a repository of Google's has, if it is one of an entry with a `*`."""
    owner, _, model_id = name.rpartition("/")
    return (model_id.lower(),) if owner in ("", "google") else ()


def _checked_id(repository: str) -> str:
    model_id = hub_model_id(repository)
    if len(model_id) > _MAX_ID_CHARS:
        raise SourceError(
            f"the id {model_id} has more than {_MAX_ID_CHARS} characters; give {repository} a"
            " catalog entry with a shorter one"
        )
    return model_id


def _repository_row(repository: str) -> dict[str, object]:
    """Return the keys of an entry that a repository itself gives."""
    return {
        "id": _checked_id(repository),
        "source": repository,
        "organization": repository.partition("/")[0],
        "license": f"see {_PAGE}{repository}",
        "release_date": _UNKNOWN_DATE,
        "features": [],
    }


def hub_adapter_entry(repository: str, folder: Path) -> CatalogEntry:
    """Return the entry of an adapter whose base is in the catalog; raise `SourceError`."""
    base = _base_of_adapter(folder)
    if base is None:
        raise adapter_error(repository, folder, is_hub=True)
    row = _repository_row(repository)
    return adapter_entry(str(row.pop("id")), str(row.pop("source")), row, base)


def adapter_error(name: str, folder: Path, is_hub: bool) -> SourceError:
    """Return the refusal of an adapter in the place of a checkpoint, with the entry to write."""
    problem = f"{name} is a LoRA adapter of {_base_name(folder)}, not a checkpoint"
    base = _base_of_adapter(folder)
    if base and is_hub:
        return SourceError(f"{problem}: export {base.id}, then {HUB_PREFIX}{name}")
    source = name if is_hub else str(folder.absolute())
    model_id = hub_model_id(name if is_hub else folder.absolute().name)
    base_id = base.id if base else "ID OF ITS BASE"
    return SourceError(
        f"{problem}: add the entry {{id: {model_id}, adapter_of: {base_id}, source: {source}}} to"
        f" the catalog after that of its base; export the base, then {model_id}"
    )


def _base_name(folder: Path) -> str:
    """Return the name of the base in PEFT's configuration; raise `SourceError`."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{ADAPTER_CONFIG_FILE} names no base: {error!r}") from error


def _base_of_adapter(folder: Path) -> CatalogEntry | None:
    """Return the entry that has the base's name as id, source or alias."""
    name = _base_name(folder)
    for entry in load_catalog(served_catalog(), _id_of_fine_tune(name)).values():
        if entry.adapter_of is None and name in (entry.id, entry.source, *entry.aliases):
            return entry
    return None


def served_catalog() -> Path:
    """Return the catalog that the service reads."""
    return Path(os.environ.get("DIPTYCH_CATALOG", CATALOG_FILE))


def is_hub_entry(entry: CatalogEntry) -> bool:
    """Return True for an entry of `hub_entry`, which no catalog has."""
    return entry.id == hub_model_id(entry.source)
