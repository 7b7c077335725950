from pathlib import Path

from export.build_key import build_key, library_versions
from export.precision_record import PrecisionRecord
from runners.artifacts.manifest import Device, Part, Precision

VERSIONS = {"torch": "2.13.0"}
PRECISION: dict[Device, dict[Part, Precision]] = {
    "cpu": {"encoder": "int8", "decoder": "int8"},
    "cuda": {"encoder": "float16", "decoder": "bfloat16"},
}


def written(folder: Path, content: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(content, encoding="utf-8")
    return [folder / "config.json"]


def test_same_content_elsewhere_has_the_same_key(tmp_path: Path) -> None:
    keys = {build_key(written(tmp_path / place, "{}"), PRECISION, None, VERSIONS) for place in ("here", "there")}
    assert len(keys) == 1


def test_content_precision_record_and_versions_each_change_the_key(tmp_path: Path) -> None:
    files, other_files = written(tmp_path / "a", "{}"), written(tmp_path / "b", "[]")
    keys = {
        build_key(files, PRECISION, None, VERSIONS),
        build_key(other_files, PRECISION, None, VERSIONS),
        build_key(files, PRECISION | {"cuda": {"encoder": "float32", "decoder": "bfloat16"}}, None, VERSIONS),
        build_key(files, PRECISION, PrecisionRecord("0" * 64, 500, ()), VERSIONS),
        build_key(files, PRECISION, PrecisionRecord("0" * 64, 400, ()), VERSIONS),
        build_key(files, PRECISION, None, {"torch": "2.14.0"}),
    }
    assert len(keys) == 6


def test_every_library_of_the_export_is_installed_and_named() -> None:
    assert {"torch", "transformers", "optimum", "onnxruntime"} <= library_versions().keys()
