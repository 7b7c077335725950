"""Adapters that change the vision tower: exported by the command, with the tokens of peft's merged
model.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.adapters import plan_adapter
from export.checkpoints.jobs import ExportOptions
from export.checks.encoding import encode
from export.checks.reference import Reference
from export.errors import SourceError
from runners.adapters.low_rank import Adapters
from runners.decoder.batch import generate_all
from runners.models.load import load_decoder
from tasks.catalog import adapter_entry
from tests.support.catalog import FLORENCE
from tests.support.decoder_cases import MAX_NEAR_TIES, NUM_SCENES, make_case
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import (
    TOWER,
    VISION_OPTIONS,
    merged,
    rename_weights,
    write_adapter,
    write_catalog,
)
from tests.support.microsoft_form import microsoft_name
from wire.artifacts.adapter_folder import CONFIG_FILE, WEIGHTS_FILE, adapter_build_key
from wire.artifacts.manifest import ADAPTER_FILE, read_manifest, sha256_of, verify_files

BASES = {"both-parts": "paligemma-mini", "vision-only": "florence-2-mini"}
NUM_PROMPTS = 18


@dataclass(frozen=True, slots=True)
class Tuned:
    """A store with the bases and their exported adapters, and where these come from."""

    store: ModelStore
    catalog: Path
    folders: Mapping[str, Path]  # PEFT's own names
    sources: Mapping[str, Path]  # the exported ones
    printed: str


@pytest.fixture(scope="module")
def tuned(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    folder = tmp_path_factory.mktemp("tuned")
    store = ModelStore(folder / "bentoml")
    shutil.copytree(exported.home, store.home, symlinks=True)
    folders = {}
    for seed, (adapter, base) in enumerate(BASES.items()):
        options: Mapping[str, Any] = VISION_OPTIONS[base]
        if adapter == "vision-only":
            options = {"target_modules": TOWER}
        model = Reference.load(MODELS / base).model
        folders[adapter] = write_adapter(model, folder / adapter, seed, **options)
    # Published ones are tuned over Microsoft's code.
    renamed = Path(shutil.copytree(folders["vision-only"], folder / "microsofts-names"))
    rename_weights(renamed, microsoft_name)
    sources = folders | {"vision-only": renamed}
    rows = {}
    for adapter, base in BASES.items():
        rows[adapter] = {"adapter_of": base, "source": str(sources[adapter])}
    catalog = write_catalog(folder / "catalog.yaml", rows)
    run = store.forked("-m", "export", *BASES, DIPTYCH_CATALOG=str(catalog))
    assert run.returncode == 0, run.stderr
    return Tuned(store, catalog, folders, sources, run.stdout)


@pytest.mark.parametrize("adapter", BASES)
def test_the_tokens_are_those_of_the_merged_model(
    tuned: Tuned, exported: ModelStore, adapter: str, tmp_path: Path
) -> None:
    base = BASES[adapter]
    artifacts = tuned.store.newest(adapter)
    case = make_case(base, exported, tmp_path)
    reference = Reference.load(MODELS / base)
    reference = Reference(merged(reference.model, tuned.folders[adapter]), reference.processor)
    expected = reference.image_features(case.images)
    features = encode(artifacts, "float32", case.images)
    assert (features - expected).abs().max() < 1e-3 * expected.abs().max()
    adapters = Adapters()
    family = read_manifest(artifacts).family
    decoder = load_decoder(exported.newest(base), family, "float32", "cpu", adapters=adapters)
    adapters.add("own", load_file(artifacts / ADAPTER_FILE))
    requests = []
    for index in range(NUM_PROMPTS):
        row = features[index % NUM_SCENES]
        requests.append(replace(case.request(index, 24), adapter="own", image_features=row))
    answers = generate_all(decoder, requests)
    adapted = replace(case, decoder=decoder, reference=reference, features=expected)
    num_near_ties = 0
    num_changed = 0
    of_base = generate_all(case.decoder, [case.request(index, 24) for index in range(NUM_PROMPTS)])
    for index, answer in enumerate(answers):
        is_equal = adapted.equals_reference(index, requests[index], answer.token_ids, 0.0)
        num_near_ties += not is_equal
        num_changed += answer.token_ids != of_base[index].token_ids
    assert num_near_ties <= MAX_NEAR_TIES * NUM_PROMPTS
    assert num_changed > NUM_PROMPTS // 4


@pytest.mark.parametrize("adapter", BASES)
def test_the_artifacts_are_an_adapters(tuned: Tuned, adapter: str) -> None:
    folder = tuned.store.newest(adapter)
    manifest = read_manifest(folder)
    base = read_manifest(tuned.store.newest(BASES[adapter]))
    verify_files(folder, manifest)
    assert manifest.has_encoder
    encoders = {name for name in base.files if name.startswith("vision_encoder")}
    assert set(manifest.files) == {ADAPTER_FILE, *encoders}
    assert (manifest.adapter_of, manifest.base_build_key) == (BASES[adapter], base.build_key)
    assert manifest.precision == base.precision
    assert manifest.parity["image_features"]["min_cosine"] > 0.9999
    # The same files in a watched folder have another key: there, they have no encoder.
    source = tuned.sources[adapter]
    hashes = {name: sha256_of(source / name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
    assert manifest.build_key not in (base.build_key, adapter_build_key(hashes, base.build_key))
    assert f"{adapter}: an adapter of " in tuned.printed
    assert (adapter == "vision-only") == (not load_file(folder / ADAPTER_FILE))


def test_options_of_the_base_are_refused() -> None:
    entry = adapter_entry("own", "folder", {}, FLORENCE)
    for options in (ExportOptions(images=MODELS), ExportOptions(mask_decoder=MODELS)):
        with pytest.raises(SourceError, match="--mask-decoder and --images are of its base"):
            plan_adapter(entry, options)


def test_a_second_export_is_skipped(tuned: Tuned) -> None:
    run = tuned.store.export("vision-only", "--if-changed", DIPTYCH_CATALOG=str(tuned.catalog))
    assert run.stdout.splitlines() == ["vision-only: up to date"], run.stderr


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"source": "/a/moved/folder"}, "/a/moved/folder is neither a folder nor a hub id"),
        ({"checkpoint": "0" * 64}, "is another checkpoint than florence-2-mini was exported from"),
    ],
)
def test_without_the_checkpoint_of_the_base_the_export_names_it(
    tuned: Tuned, tmp_path: Path, changed: dict[str, str], text: str
) -> None:
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(tuned.store.home, store.home, symlinks=True)
    manifest = store.newest("florence-2-mini") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    run = store.export("vision-only", DIPTYCH_CATALOG=str(tuned.catalog))
    assert run.returncode == 1
    (line,) = (line for line in run.stderr.splitlines() if line.startswith("python -m export:"))
    assert text in line


def test_unknown_layers_and_values_that_are_not_finite_are_refused(
    tuned: Tuned, tmp_path: Path
) -> None:
    source = tuned.folders["vision-only"]
    folder = shutil.copytree(source, tmp_path / "broken")
    tensors = load_file(folder / WEIGHTS_FILE)
    broken = {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}
    save_file(broken, folder / WEIGHTS_FILE)
    rows = {
        "another-base": {"adapter_of": "paligemma-mini", "source": str(source)},
        "broken": {"adapter_of": "florence-2-mini", "source": str(folder)},
    }
    catalog = write_catalog(tmp_path / "catalog.yaml", rows)
    for name, message in (
        ("another-base", "which its base does not have"),
        ("broken", "model.vision_tower.* is infinite or not a number"),
    ):
        run = tuned.store.forked("-m", "export", name, DIPTYCH_CATALOG=str(catalog))
        assert run.returncode == 1
        assert re.search(f"python -m export: .*{message}", run.stderr)
        assert not tuned.store.versions(name)
