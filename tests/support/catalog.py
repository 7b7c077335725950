"""The project's own catalog, for tests."""

from pathlib import Path

from tasks.catalog import CatalogEntry, load_catalog

ROOT = Path(__file__).parents[2]
CATALOG = load_catalog(ROOT / "models" / "catalog.yaml")
FLORENCE: CatalogEntry = CATALOG["florence-2-mini"]
PALIGEMMA: CatalogEntry = CATALOG["paligemma-mini"]
