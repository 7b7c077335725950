from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.export_random import PROBES, export_random
from tests.support.random_weights import SHAPES, write_random_checkpoint
from wire.artifacts.manifest import read_manifest, verify_files


@pytest.fixture
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Florence-2-large with a quarter of its pixels: the widths are under test, and full images
    take two minutes.
    """
    small = replace(SHAPES["florence-2-large"], image_size_px=384, num_image_tokens=12 * 12 + 1)
    monkeypatch.setitem(SHAPES, "florence-2-large", small)


@pytest.mark.long
@pytest.mark.usefixtures("small_images")
@pytest.mark.parametrize(
    "name", ["florence-2-large", "paligemma-3b-mix-224", "paligemma-3b-pt-896"]
)
def test_real_widths_pass_parity(name: str, tmp_path: Path) -> None:
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    manifest = export_random(name, tmp_path / "checkpoint", artifacts)
    assert manifest == read_manifest(artifacts)
    verify_files(artifacts, manifest)
    assert manifest.num_image_tokens == SHAPES[name].num_image_tokens
    assert manifest.image_size_wh == (SHAPES[name].image_size_px,) * 2
    assert manifest.parity["tokens"]["num_prompts"] == PROBES.num_probes


def test_a_seed_gives_one_checkpoint(tmp_path: Path) -> None:
    for place in ("one", "other"):
        write_random_checkpoint("florence-2-base", tmp_path / place, max_layers=1)
    paths = [tmp_path / place / "model.safetensors" for place in ("one", "other")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
