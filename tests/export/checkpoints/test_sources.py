import json
import shutil
from pathlib import Path

import pytest

from export.checkpoints.errors import SourceError
from export.checkpoints.precision_record import RECORD_FILE
from export.checkpoints.sources import (
    WEIGHTS_INDEX_FILE,
    Source,
    check_hash,
    resolve_file,
    resolve_source,
)
from tests.support.export_cli import MODELS, ROOT
from wire.artifacts.manifest import CALIBRATION_FILE


def test_folder_is_found_relative_to_the_root() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    assert source == Source("models/florence-2-mini", None, MODELS / "florence-2-mini")
    # model card, its pictures, measurements
    of_ours = (".md", ".png", RECORD_FILE, CALIBRATION_FILE)
    names = [path.name for path in (MODELS / "florence-2-mini").iterdir()]
    read = sorted(name for name in names if not name.endswith(of_ours))
    assert [path.name for path in source.files()] == read


def test_folder_with_a_revision_is_refused() -> None:
    with pytest.raises(SourceError, match="has no revisions"):
        resolve_source("models/florence-2-mini", "main", "florence2", ROOT)


@pytest.mark.parametrize(
    "config",
    [
        "",
        "[]",
        "{}",
        '{"model_type": "bert"}',
        '{"model_type": "florence2", "vision_config": 1, "text_config": {}}',
        '{"model_type": "florence2", "vision_config": {"model_type": "vit"}, "text_config": {}}',
    ],
)
def test_config_without_a_known_family_is_refused(tmp_path: Path, config: str) -> None:
    for name in ("tokenizer.json", "processor_config.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(SourceError, match=r"model_type|checkpoint of bert|vision_config"):
        resolve_source(str(tmp_path), None, "florence2", ROOT)


def test_file_that_is_not_in_the_checkpoint_is_refused() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    with pytest.raises(SourceError, match=r"does not contain vae\.npz"):
        resolve_file("vae.npz", source)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODELS / "florence-2-mini", tmp_path / "checkpoint"))


@pytest.mark.parametrize(
    "file_name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors"]
)
def test_checkpoint_without_a_file_is_refused(checkpoint: Path, file_name: str) -> None:
    (checkpoint / file_name).unlink()
    with pytest.raises(SourceError, match=f"lacks .*{file_name}"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


@pytest.mark.parametrize("file_name", ["tokenizer.json", "processor_config.json"])
def test_checkpoint_without_its_processor_names_the_base_to_copy_it_from(
    checkpoint: Path, file_name: str
) -> None:
    (checkpoint / file_name).unlink()
    expected = rf"lacks {file_name}.*: copy .* from its base florence-community/Florence-2-base,"
    with pytest.raises(SourceError, match=expected):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


def test_checkpoint_of_big_vision_is_refused_with_the_conversion(tmp_path: Path) -> None:
    (tmp_path / "pt_224.bf16.npz").write_bytes(b"")
    for name in (str(tmp_path), str(tmp_path / "pt_224.bf16.npz"), "folder/pt_224.npz"):
        with pytest.raises(SourceError, match=r"of big_vision \(\.npz\), which must be converted"):
            resolve_source(name, None, "paligemma", ROOT)


def test_checkpoint_without_one_of_its_shards_is_refused(checkpoint: Path) -> None:
    shards = {"first": "model.safetensors", "second": "model-00002-of-00002.safetensors"}
    (checkpoint / WEIGHTS_INDEX_FILE).write_text(
        json.dumps({"weight_map": shards}), encoding="utf-8"
    )
    with pytest.raises(SourceError, match=r"lacks model-00002-of-00002\.safetensors$"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SourceError, match=r"model\.safetensors of .* is damaged or incomplete"):
        resolve_source(str(checkpoint), None, "florence2", ROOT)


def test_hub_file_with_another_hash_is_refused_with_both(tmp_path: Path) -> None:
    (tmp_path / "vae.npz").write_bytes(b"")
    nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    check_hash(tmp_path / "vae.npz", f"hf://owner/name/vae.npz#sha256={nothing}", nothing)
    with pytest.raises(
        SourceError,
        match=rf"^hf://owner/name/vae\.npz has sha256 {nothing}; the catalog expects 00",
    ):
        check_hash(tmp_path / "vae.npz", "hf://owner/name/vae.npz#sha256=00", "00")
