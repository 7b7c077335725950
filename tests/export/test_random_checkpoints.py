import json
from pathlib import Path

import pytest

from export.jobs import ExportOptions, plan_job
from export.pipeline import make_artifacts
from export.random_checkpoints import SHAPES, write_random_checkpoint
from runners.artifacts import read_manifest, verify_files
from tasks.catalog import load_catalog
from tests.support.export_cli import MODELS, ROOT

CATALOG = load_catalog(MODELS / "catalog.yaml")
NUM_PROBES, MAX_NEW_TOKENS = 2, 12  # an export takes 20 and 64; real widths take seconds for each


@pytest.mark.parametrize("name", SHAPES)
def test_real_widths_with_few_layers_export_and_pass_parity(name: str, tmp_path: Path) -> None:
    # Gemma 2 takes two layers for one whose window slides and one whose does not.
    write_random_checkpoint(name, tmp_path / "checkpoint", max_layers=2 if "-2-3b" in name else 1)
    options = ExportOptions(source=str(tmp_path / "checkpoint"), mask_decoder=_mask_decoder(name))
    artifacts = tmp_path / "artifacts"
    artifacts.mkdir()
    manifest = make_artifacts(plan_job(CATALOG[name], options, ROOT), artifacts, NUM_PROBES, MAX_NEW_TOKENS)
    assert manifest == read_manifest(artifacts)
    verify_files(artifacts, manifest)
    assert manifest.num_image_tokens == SHAPES[name].num_image_tokens
    assert manifest.image_size_wh == (SHAPES[name].image_size_px,) * 2
    assert manifest.parity["tokens"]["num_prompts"] == NUM_PROBES


def _mask_decoder(name: str) -> Path | None:
    return MODELS / "paligemma-mini" / "vae.npz" if name.startswith("paligemma") else None


@pytest.mark.parametrize(
    ("name", "num_layers", "width"),
    [
        ("florence-2-base", 6, 768),
        ("florence-2-large", 12, 1024),
        ("paligemma-3b-mix-224", 18, 2048),
        ("paligemma-2-3b-mix-224", 26, 2304),
    ],
)
def test_without_a_limit_the_configuration_has_the_published_size(name: str, num_layers: int, width: int) -> None:
    config = SHAPES[name].config(100).get_text_config()
    assert (config.num_hidden_layers, config.hidden_size) == (num_layers, width)


def test_same_seed_gives_the_same_checkpoint(tmp_path: Path) -> None:
    for place in ("one", "other"):
        write_random_checkpoint("florence-2-base", tmp_path / place, max_layers=1)
    first, second = ((tmp_path / place / "model.safetensors").read_bytes() for place in ("one", "other"))
    assert first == second
    assert json.loads((tmp_path / "one" / "generation_config.json").read_text())["no_repeat_ngram_size"] == 3
