"""The size of a checkpoint and the released model that it descends from, read from its files.

A catalog entry describes a checkpoint; here the entry is compared with the checkpoint, or made of
it for a repository of the hub that has none.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.checkpoints.errors import SourceError
from tasks.catalog import CatalogEntry, hub_model_id, load_catalog

_CATALOG_FILE = Path(__file__).parents[2] / "models" / "catalog.yaml"

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
    catalog = load_catalog(_CATALOG_FILE)
    name = _BASES.get((family, width), "").format(side)
    return catalog[name if name in catalog else _ANY_BASE[family]]


def hub_entry(repository: str, config: Mapping[str, Any]) -> CatalogEntry:
    """Return the entry of a repository, `owner/name`: the catalog's, or one made of its
    configuration.

    Its numbers are its base's until the weights are there. Raise `SourceError`.
    """
    model_id = hub_model_id(repository)
    if len(model_id) > _MAX_ID_CHARS:
        raise SourceError(
            f"the id {model_id} has more than {_MAX_ID_CHARS} characters; give {repository} a"
            " catalog entry with a shorter one"
        )
    for entry in load_catalog(_CATALOG_FILE).values():
        if entry.source == repository:
            return replace(entry, id=model_id)
    return replace(
        base_entry(config),
        id=model_id,
        source=repository,
        revision=None,
        organization=repository.partition("/")[0],
        license=f"see {_PAGE}{repository}",
        release_date=_UNKNOWN_DATE,
        features=(),
        weights_sha256=None,
        aliases=(),
    )


def is_hub_entry(entry: CatalogEntry) -> bool:
    """Return True for an entry of `hub_entry`, which no catalog has."""
    return entry.id == hub_model_id(entry.source)
