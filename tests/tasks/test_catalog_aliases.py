"""Other names of a checkpoint, by which adapters name their base."""

from pathlib import Path

import pytest
import yaml

from tasks.catalog import CatalogError, entry_row, load_catalog, parse_entry
from tests.support.catalog import CATALOG, FLORENCE


@pytest.mark.parametrize(
    "aliases", ["a/b", ["a b"], ["a" * 201], [""], [f"a/{index}" for index in range(21)]]
)
def test_bad_aliases_are_refused(aliases: object) -> None:
    allowed = "aliases must be a list of at most 20 names of 1 to 200 characters"
    with pytest.raises(CatalogError, match=allowed):
        parse_entry(entry_row(FLORENCE) | {"aliases": aliases})


@pytest.mark.parametrize("alias", ["some-model", "owner/name", "an/alias"])
def test_an_alias_names_one_entry(tmp_path: Path, alias: str) -> None:
    path = tmp_path / "catalog.yaml"
    row = entry_row(FLORENCE) | {"id": "some-model", "source": "owner/name"}
    other = row | {"id": "other", "source": "owner/other", "aliases": [alias]}
    rows = [row | {"aliases": ["an/alias"]}, other]
    path.write_text(yaml.safe_dump({"models": rows}))
    with pytest.raises(CatalogError, match=f"other: aliases has '{alias}', a name of some-model"):
        load_catalog(path)


def test_adapters_of_microsofts_repositories_find_their_base() -> None:
    aliases = {alias: entry.source for entry in CATALOG.values() for alias in entry.aliases}
    for size in ("base", "large", "base-ft", "large-ft"):
        name = f"Florence-2-{size}"
        assert aliases[f"microsoft/{name}"] == f"florence-community/{name}"
