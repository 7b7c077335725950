from pathlib import Path

import pytest

from export.errors import SourceError
from export.jobs import ExportOptions, plan_job
from tasks.catalog import load_catalog
from tests.support.export_cli import MODELS, ROOT

CATALOG = load_catalog(MODELS / "catalog.yaml")


def test_catalog_decides_what_the_user_leaves_open() -> None:
    job = plan_job(CATALOG["paligemma-mini"], ExportOptions(), ROOT)
    assert (job.source.name, job.entry) == ("models/paligemma-mini", CATALOG["paligemma-mini"])
    assert job.mask_decoder == MODELS / "paligemma-mini" / "vae.npz"


def test_user_overrides_the_catalog(tmp_path: Path) -> None:
    mask_decoder = tmp_path / "other.npz"
    mask_decoder.write_bytes((MODELS / "paligemma-mini" / "vae.npz").read_bytes())
    mask_decoder.write_bytes(mask_decoder.read_bytes() + b"more")
    options = ExportOptions(str(MODELS / "paligemma-mini"), None, mask_decoder)
    job = plan_job(CATALOG["paligemma-mini"], options, ROOT)
    assert job.source.name == str(MODELS / "paligemma-mini")
    assert job.mask_decoder == mask_decoder
    assert job.build_key != plan_job(CATALOG["paligemma-mini"], ExportOptions(), ROOT).build_key


def test_file_that_is_no_mask_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vae.npz").write_bytes(b"PK")
    options = ExportOptions(mask_decoder=tmp_path / "vae.npz")
    with pytest.raises(SourceError, match=r"vae\.npz cannot be read"):
        plan_job(CATALOG["paligemma-mini"], options, ROOT)


def test_mask_decoder_for_florence_2_is_refused() -> None:
    options = ExportOptions(mask_decoder=MODELS / "paligemma-mini" / "vae.npz")
    with pytest.raises(SourceError, match="has no use for a mask decoder"):
        plan_job(CATALOG["florence-2-mini"], options, ROOT)
