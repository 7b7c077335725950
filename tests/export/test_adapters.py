"""Adapters that change the vision tower: exported by the command, with the tokens of peft's merged
model.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from export.checks.reference import Reference
from runners.adapters.low_rank import Adapters
from runners.decoder.batch import generate_all
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from tests.support.adapter_forms import TOWER, with_microsofts_names
from tests.support.decoder_cases import MAX_NEAR_TIES, NUM_SCENES, make_case
from tests.support.export_cli import MODELS, ModelStore
from tests.support.lora import VISION_OPTIONS, merged, write_adapter, write_catalog
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
    folders = {}
    shutil.copytree(exported.home, store.home, symlinks=True)
    for seed, (adapter, base) in enumerate(BASES.items()):
        options: Mapping[str, Any] = VISION_OPTIONS[base]
        if adapter == "vision-only":
            options = {"target_modules": TOWER}
        folders[adapter] = write_adapter(
            Reference.load(MODELS / base).model, folder / adapter, seed, **options
        )
    # Published ones are tuned over Microsoft's code.
    renamed = Path(shutil.copytree(folders["vision-only"], folder / "microsofts-names"))
    with_microsofts_names(renamed)
    sources = folders | {"vision-only": renamed}
    rows = {
        adapter: {"adapter_of": base, "source": str(sources[adapter])}
        for adapter, base in BASES.items()
    }
    catalog = write_catalog(folder / "catalog.yaml", rows)
    run = store.forked("-m", "export", *BASES, DIPTYCH_CATALOG=str(catalog))
    assert run.returncode == 0, run.stderr
    return Tuned(store, catalog, folders, sources, run.stdout)


@pytest.mark.parametrize("adapter", BASES)
def test_the_tokens_are_those_of_the_merged_model(
    tuned: Tuned,
    exported: ModelStore,
    adapter: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = BASES[adapter]
    artifacts = tuned.store.newest(adapter)
    case = make_case(base, exported, tmp_path)
    reference = Reference.load(MODELS / base)
    reference = Reference(merged(reference.model, tuned.folders[adapter]), reference.processor)
    expected = reference.image_features(case.images)
    encoder = VisionEncoder(artifacts)
    encoder.load()
    features = encoder.encode(np.stack([np.asarray(image) for image in case.images]))
    assert (features - expected).abs().max() < 1e-3 * expected.abs().max()
    adapters = Adapters()
    decoder = load_decoder(
        exported.newest(base), read_manifest(artifacts).family, "float32", "cpu", adapters=adapters
    )
    adapters.add("own", load_file(artifacts / ADAPTER_FILE))
    requests = [
        replace(case.request(index, 24), adapter="own", image_features=features[index % NUM_SCENES])
        for index in range(NUM_PROMPTS)
    ]
    case = replace(case, decoder=decoder, reference=reference, features=expected)
    num_near_ties = 0
    for index, (request, written) in enumerate(
        zip(requests, generate_all(decoder, requests), strict=True)
    ):
        num_near_ties += not case.equals_reference(index, request, written.token_ids, 0.0)
    with capsys.disabled():
        print(f"\n{num_near_ties} near ties in {NUM_PROMPTS} answers", end=" ")
    assert num_near_ties <= MAX_NEAR_TIES * NUM_PROMPTS


@pytest.mark.parametrize("adapter", BASES)
def test_the_vision_part_changes_the_answers(
    tuned: Tuned, exported: ModelStore, adapter: str, tmp_path: Path
) -> None:
    """Otherwise the comparison above would compare the features of the base."""
    case = make_case(BASES[adapter], exported, tmp_path)
    encoder = VisionEncoder(tuned.store.newest(adapter))
    encoder.load()
    features = encoder.encode(np.stack([np.asarray(image) for image in case.images]))
    requests = [case.request(index, 24) for index in range(NUM_PROMPTS)]
    own = [
        replace(each, image_features=features[index % NUM_SCENES])
        for index, each in enumerate(requests)
    ]
    pairs = zip(generate_all(case.decoder, requests), generate_all(case.decoder, own), strict=True)
    assert sum(one.token_ids != other.token_ids for one, other in pairs) > NUM_PROMPTS // 4


@pytest.mark.parametrize("adapter", BASES)
def test_the_artifacts_have_the_precisions_of_the_base_and_a_build_of_their_own(
    tuned: Tuned, adapter: str
) -> None:
    folder = tuned.store.newest(adapter)
    base_folder = tuned.store.newest(BASES[adapter])
    manifest = read_manifest(folder)
    base = read_manifest(base_folder)
    verify_files(folder, manifest)
    assert manifest.has_encoder
    assert set(manifest.files) == {ADAPTER_FILE} | {
        name for name in base.files if name.startswith("vision_encoder")
    }
    assert (manifest.adapter_of, manifest.base_build_key) == (BASES[adapter], base.build_key)
    assert manifest.precision == base.precision
    assert manifest.parity["image_features"]["min_cosine"] > 0.9999
    # The same files in a watched folder have another key: there, they have no encoder.
    hashes = {
        name: sha256_of(tuned.sources[adapter] / name) for name in (CONFIG_FILE, WEIGHTS_FILE)
    }
    assert manifest.build_key not in (base.build_key, adapter_build_key(hashes, base.build_key))
    assert f"{adapter}: an adapter of " in tuned.printed
    assert (adapter == "vision-only") == (not load_file(folder / ADAPTER_FILE))


def test_a_second_export_is_skipped(tuned: Tuned) -> None:
    run = tuned.store.export("vision-only", "--if-changed", DIPTYCH_CATALOG=str(tuned.catalog))
    assert run.stdout.splitlines() == ["vision-only: up to date"], run.stderr


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (
            {"source": "/a/moved/folder"},
            "its export needs the checkpoint of florence-2-mini: /a/moved/folder",
        ),
        ({"checkpoint": "0" * 64}, "florence-2-mini was exported from 0000"),
    ],
)
def test_without_the_checkpoint_of_the_base_the_export_names_it(
    tuned: Tuned, tmp_path: Path, changed: dict[str, str], named: str
) -> None:
    store = ModelStore(tmp_path / "bentoml")
    shutil.copytree(tuned.store.home, store.home, symlinks=True)
    manifest = store.newest("florence-2-mini") / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    run = store.export("vision-only", DIPTYCH_CATALOG=str(tuned.catalog))
    assert run.returncode == 1
    (line,) = [each for each in run.stderr.splitlines() if each.startswith("python -m export:")]
    assert named in line


def test_a_layer_that_the_base_does_not_have_and_weights_that_are_not_finite_are_refused(
    tuned: Tuned, tmp_path: Path
) -> None:
    folder = shutil.copytree(tuned.folders["vision-only"], tmp_path / "broken")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file(
        {name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()},
        folder / WEIGHTS_FILE,
    )
    rows = {
        "another-base": {
            "adapter_of": "paligemma-mini",
            "source": str(tuned.folders["vision-only"]),
        },
        "broken": {"adapter_of": "florence-2-mini", "source": str(folder)},
    }
    catalog = write_catalog(tmp_path / "catalog.yaml", rows)
    code = f"from export.__main__ import main; print([main([each]) for each in {list(rows)}])"
    run = tuned.store.forked("-c", code, DIPTYCH_CATALOG=str(catalog))
    assert run.stdout.splitlines()[-1] == "[1, 1]"
    first, second = (
        line for line in run.stderr.splitlines() if line.startswith("python -m export: ")
    )
    assert "the adapter changes model.vision_tower.blocks" in first
    assert "which its base does not have" in first
    assert second.startswith("python -m export: the adapter makes model.vision_tower.blocks")
    assert not any(map(tuned.store.versions, rows))
