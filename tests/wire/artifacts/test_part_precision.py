import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from wire.artifacts.manifest import (
    RUNNABLE,
    ArtifactError,
    Device,
    Part,
    WantedPrecision,
    choose_precision,
    measured_agreement,
    read_manifest,
    vision_encoder_file,
)


def test_the_default_is_the_precision_in_the_manifest(artifacts: Path) -> None:
    read = read_manifest(artifacts)
    manifest = replace(
        read,
        files={**read.files, vision_encoder_file("int8"): ""},
        precision={
            "cpu": {"encoder": "int8", "decoder": "bfloat16"},
            "cuda": {"encoder": "float16", "decoder": "float32"},
        },
    )
    chosen = {
        (device, part): choose_precision(manifest, part, device, "auto")
        for device, part in device_parts()
    }
    assert chosen == {
        ("cpu", "encoder"): "int8",
        ("cpu", "decoder"): "bfloat16",
        ("cuda", "encoder"): "float16",
        ("cuda", "decoder"): "float32",
    }


def device_parts() -> list[tuple[Device, Part]]:
    return [(device, part) for device, parts in RUNNABLE.items() for part in parts]


@pytest.mark.parametrize(("device", "part"), device_parts())
def test_float32_can_be_set_everywhere(artifacts: Path, device: Device, part: Part) -> None:
    assert choose_precision(read_manifest(artifacts), part, device, "float32") == "float32"


@pytest.mark.parametrize(
    ("part", "device", "wanted"),
    [
        ("encoder", "cpu", "float16"),
        ("encoder", "cuda", "int8"),
        ("encoder", "cpu", "bfloat16"),
        ("decoder", "cuda", "int8"),
        ("decoder", "cpu", "float16"),
    ],
)
def test_a_precision_that_the_device_lacks_is_refused(
    artifacts: Path, part: Part, device: Device, wanted: WantedPrecision
) -> None:
    with pytest.raises(
        ArtifactError,
        match=f"the {part} of .* cannot run in {wanted} on {device}; its artifacts allow",
    ):
        choose_precision(read_manifest(artifacts), part, device, wanted)


def test_an_encoder_that_was_not_exported_is_refused(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    files = {name: digest for name, digest in manifest.files.items() if "int8" not in name}
    with pytest.raises(
        ArtifactError, match="cannot run in int8 on cpu; its artifacts allow float32"
    ):
        choose_precision(replace(manifest, files=files), "encoder", "cpu", "int8")


def test_a_manifest_of_an_earlier_version_is_refused(artifacts: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifacts, tmp_path / "old"))
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | {"precision": "float32"}))
    with pytest.raises(
        ArtifactError, match="precision is 'float32'; it must be a mapping by device and part"
    ):
        read_manifest(folder)


def test_agreement_is_that_of_the_pictures_that_decide(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    (expected,) = [
        run
        for run in manifest.parity["answers"]["runs"]
        if (run["encoder"], run["decoder"], run["pictures"]) == ("int8", "float32", "scenes")
    ]
    measured = measured_agreement(manifest, "int8", "float32")
    assert measured == {"pictures": "scenes", "num_pictures": 12} | expected["agreement"]


def test_float32_and_artifacts_without_a_comparison_have_no_agreement(artifacts: Path) -> None:
    manifest = read_manifest(artifacts)
    assert measured_agreement(manifest, "float32", "float32") is None
    before = {name: value for name, value in manifest.parity.items() if name != "answers"}
    assert measured_agreement(replace(manifest, parity=before), "int8", "float32") is None
