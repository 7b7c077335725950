import json
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from wire.artifacts.manifest import (
    RUNNABLE,
    ArtifactError,
    Device,
    Manifest,
    Part,
    WantedPrecision,
    choose_precision,
    measured_agreement,
    read_manifest,
    verify_files,
    vision_encoder_file,
)

PARTS = list(product(RUNNABLE, RUNNABLE["cpu"]))


@pytest.fixture
def manifest(artifacts: Path) -> Manifest:
    return read_manifest(artifacts)


@pytest.mark.parametrize(("device", "part"), PARTS)
def test_precision_of_a_part(manifest: Manifest, device: Device, part: Part) -> None:
    """The default is in the manifest; float32 can be set everywhere."""
    manifest = replace(
        manifest,
        files={**manifest.files, vision_encoder_file("int8"): ""},
        precision={
            "cpu": {"encoder": "int8", "decoder": "bfloat16"},
            "cuda": {"encoder": "float16", "decoder": "float32"},
        },
    )
    default = manifest.precision[device][part]
    assert choose_precision(manifest, part, device, "auto") == default
    assert choose_precision(manifest, part, device, "float32") == "float32"


@pytest.mark.parametrize(
    ("part", "device", "setting"),
    [
        ("encoder", "cpu", "float16"),
        ("encoder", "cuda", "int8"),
        ("encoder", "cpu", "bfloat16"),
        ("decoder", "cuda", "int8"),
        ("decoder", "cpu", "float16"),
    ],
)
def test_precision_that_cannot_run_is_refused(
    manifest: Manifest, part: Part, device: Device, setting: WantedPrecision
) -> None:
    message = f"the {part} of .* cannot run in {setting} on {device}; its artifacts allow float32"
    with pytest.raises(ArtifactError, match=message):
        choose_precision(manifest, part, device, setting)
    files = {name: digest for name, digest in manifest.files.items() if "int8" not in name}
    with pytest.raises(ArtifactError, match=r"int8 on cpu; its artifacts allow float32$"):
        choose_precision(replace(manifest, files=files), "encoder", "cpu", "int8")


@pytest.mark.parametrize("change", [{"precision": "float32"}, {"a_later_key": 1}])
def test_manifest_of_another_version_is_refused(
    artifacts: Path, tmp_path: Path, change: dict[str, object]
) -> None:
    folder = Path(shutil.copytree(artifacts, tmp_path / "old"))
    values = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="not a valid manifest of this version"):
        read_manifest(folder)


def test_files_of_artifacts(artifacts: Path, manifest: Manifest, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts, tmp_path / "copy"))
    verify_files(folder, manifest)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"config\.json has sha256 44136fa3"):
        verify_files(folder, manifest)
    verify_files(folder, manifest, names=())
    (folder / "more.json").touch()
    with pytest.raises(ArtifactError, match=r"manifest lacks: \['more.json'\]"):
        verify_files(folder, manifest, names=())
    (folder / "more.json").rename(folder / "model.yaml")  # BentoML's
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match=r"lacks config\.json"):
        verify_files(folder, manifest, names=())


def test_agreement_of_precisions(manifest: Manifest) -> None:
    """It is about the pictures that decide; float32 is the reference."""
    (agreement,) = [
        run["agreement"]
        for run in manifest.parity["answers"]["runs"]
        if (run["encoder"], run["decoder"], run["pictures"]) == ("int8", "float32", "scenes")
    ]
    measured = measured_agreement(manifest, "int8", "float32")
    assert measured == {"pictures": "scenes", "num_pictures": 12} | agreement
    assert measured_agreement(manifest, "float32", "float32") is None
    before = {name: value for name, value in manifest.parity.items() if name != "answers"}
    assert measured_agreement(replace(manifest, parity=before), "int8", "float32") is None
