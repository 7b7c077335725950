"""The project's own catalog, its embedded models and their mask decoder, for tests."""

from pathlib import Path

from tasks.catalog import CatalogEntry, load_catalog
from tasks.paligemma import MaskDecoder
from tasks.table import Family

ROOT = Path(__file__).parents[2]
CATALOG = load_catalog(ROOT / "models" / "catalog.yaml")
FLORENCE: CatalogEntry = CATALOG["florence-2-mini"]
PALIGEMMA: CatalogEntry = CATALOG["paligemma-mini"]
MASK_DECODER_FILE = ROOT / PALIGEMMA.source / "vae.npz"
MASK_DECODER = MaskDecoder.load(MASK_DECODER_FILE)
RELEASED: dict[Family, CatalogEntry] = {
    "florence2": CATALOG["florence-2-base"],
    "paligemma": CATALOG["paligemma-3b-mix-224"],
}
EOS_ID: dict[Family, int] = {"florence2": 2, "paligemma": 1}
