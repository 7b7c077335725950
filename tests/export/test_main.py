import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from export.checks.answers import MIN_EQUAL_TOKENS, MIN_MATCHED_BOXES
from export.checks.parity import MIN_MEAN_COSINE
from tasks.catalog import load_catalog
from tests.support.export_cli import EMBEDDED, MODELS, ROOT, ModelStore
from wire.artifacts.manifest import (
    ArtifactError,
    Part,
    read_manifest,
    verify_files,
    vision_encoder_file,
)


def small_disk(folder: Path, size_mb: int) -> tuple[str, ...]:
    """Return a command that runs its arguments with a tmpfs, which only they see, at `folder`."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size_mb}m tmpfs "$0" && exec "$@"'
    as_root = ["--map-root-user"] if os.geteuid() else []
    return ("unshare", "--mount", *as_root, "sh", "-c", mount, str(folder))


@pytest.fixture
def empty_store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "bentoml")


def assert_refused(run: subprocess.CompletedProcess[str], message: str) -> None:
    assert run.returncode == 1
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_manifest_describes_every_file(artifacts: Path, model_id: str, tmp_path: Path) -> None:
    manifest = read_manifest(artifacts)
    verify_files(artifacts, manifest)
    stored = {path.name for path in artifacts.iterdir()} - {"manifest.json", "model.yaml"}
    assert stored == set(manifest.files)
    assert {"vision_encoder.onnx", "decoder.safetensors", "config.json", "tokenizer.json"} <= stored
    assert ("mask_decoder.npz" in stored) == (model_id == "paligemma-mini")
    expected = (model_id, f"models/{model_id}", None)
    assert (manifest.model_id, manifest.source, manifest.revision) == expected
    assert (manifest.image_size_wh, manifest.hidden_size) == ((192, 192), 128)
    assert manifest.precision == load_catalog(MODELS / "catalog.yaml")[model_id].precision
    assert manifest.versions["transformers"]
    config = json.loads((artifacts / "config.json").read_text(encoding="utf-8"))
    assert config["_name_or_path"] == model_id
    assert str(MODELS) not in json.dumps(config)
    folder = Path(shutil.copytree(artifacts, tmp_path / "altered"))
    weights = bytearray((folder / "decoder.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "decoder.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"decoder\.safetensors"):
        verify_files(folder, manifest)


def test_precisions_are_exported_and_measured(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    parity = manifest.parity
    assert parity["image_features"]["num_images"] == parity["tokens"]["num_prompts"] == 20
    assert parity["image_features"]["min_cosine"] > 0.99999
    assert parity["tokens"]["num_near_ties"] == 0
    parts: tuple[Part, ...] = ("encoder", "decoder")
    for part in parts:
        precisions = {of_device[part] for of_device in manifest.precision.values()} | {"int8"}
        assert parity[part].keys() == precisions - {"float32"}
        for measured in parity[part].values():
            assert MIN_MEAN_COSINE <= measured["mean_cosine"] < 1.00001
            assert measured["min_cosine"] <= measured["mean_cosine"]
            assert 0 < measured["max_abs_error"] < measured["max_abs_float32"]
    for measured in parity["decoder"].values():
        # White, black and noise add one token each.
        assert measured["num_tokens"] == parity["tokens"]["num_tokens"] + 3
    for precision in ("int8", *(of_device["encoder"] for of_device in manifest.precision.values())):
        assert vision_encoder_file(precision) in manifest.files


def test_answers_of_every_precision_are_compared_with_float32(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    default = manifest.precision["cuda"]
    assert manifest.parity["answers"]["decided_by"] == "scenes"
    expected = {(default["encoder"], default["decoder"]): 2}  # float16 encoders see two pictures
    for precision in manifest.parity["encoder"]:
        expected[precision, "float32"] = 2 if precision == "float16" else 12
    for precision in manifest.parity["decoder"]:
        expected["float32", precision] = 2 if precision == "float16" else 12
    num_pictures = {}
    for run in manifest.parity["answers"]["runs"]:
        num_pictures[run["encoder"], run["decoder"]] = run["num_pictures"]
        assert run["pictures"] == "scenes"
        assert run["agreement"]["equal_tokens"] >= MIN_EQUAL_TOKENS
        assert run["agreement"]["matched_boxes"] >= MIN_MATCHED_BOXES
    assert num_pictures == expected


def test_unchanged_models_are_skipped(exported: ModelStore) -> None:
    run = exported.export("--if-changed", *EMBEDDED)
    assert run.stdout.splitlines() == [f"{model_id}: up to date" for model_id in EMBEDDED]
    assert [len(exported.versions(model_id)) for model_id in EMBEDDED] == [1, 1]


def test_an_export_from_a_folder_is_kept_without_a_network(
    exported: ModelStore, tmp_path: Path
) -> None:
    document = yaml.safe_load((MODELS / "catalog.yaml").read_text(encoding="utf-8"))
    document["models"][0]["source"] = "owner/name"
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(yaml.safe_dump(document), encoding="utf-8")
    environment = {"DIPTYCH_CATALOG": str(catalog), "HF_ENDPOINT": "http://127.0.0.1:9"}
    run = exported.export("--if-changed", "florence-2-mini", **environment)
    assert (run.returncode, run.stdout) == (
        0,
        "florence-2-mini: kept as exported from models/florence-2-mini; without --if-changed, of"
        " owner/name\n",
    )


def test_a_skipped_export_imports_no_torch(exported: ModelStore) -> None:
    code = (
        f"import sys; from export.__main__ import main; assert main(['--if-changed', *{EMBEDDED}])"
        " == 0; print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    environment = {"BENTOML_HOME": str(exported.home), "PATH": ""}
    output = subprocess.check_output(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, text=True
    )
    assert output.splitlines()[-1] == "False False"


def test_damaged_artifacts_alone_are_exported_again(exported: ModelStore, tmp_path: Path) -> None:
    """The disk has no room for it: the refusal shows that an export begins."""
    small = tmp_path / "small"
    home = Path(shutil.copytree(exported.home, tmp_path / "bentoml"))
    store = ModelStore(home, small_disk(small, 2))
    (store.newest("paligemma-mini") / "tokenizer.json").write_text("{}", encoding="utf-8")
    run = store.export("--if-changed", *EMBEDDED, TMPDIR=str(small))
    assert run.stdout.splitlines() == ["florence-2-mini: up to date"]
    assert_refused(run, f"GB of disk; 0.002 GB are free in {small}: set BENTOML_HOME")


def test_one_source_for_two_models_is_refused(empty_store: ModelStore) -> None:
    run = empty_store.export(*EMBEDDED, "--source", "models/florence-2-mini")
    assert run.returncode == 2
    assert "require exactly one MODEL" in run.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["florence2-base"], "unknown model florence2-base (did you mean florence-2-base?); the"),
        (["florence-2-mini", "--source", "models/no/where"], "neither a folder nor a hub id"),
        (["florence-2-mini", "--source", "a/b"], "cannot fetch a/b at its newest commit"),
    ],
)
def test_bad_arguments_are_refused(
    empty_store: ModelStore, arguments: list[str], message: str
) -> None:
    assert_refused(empty_store.export(*arguments, HF_HUB_OFFLINE="1"), message)
