from pathlib import Path

from export.build_key import build_key, library_versions

VERSIONS = {"torch": "2.13.0"}


def written(folder: Path, content: str) -> list[Path]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(content, encoding="utf-8")
    return [folder / "config.json"]


def test_same_content_elsewhere_has_the_same_key(tmp_path: Path) -> None:
    keys = {build_key(written(tmp_path / place, "{}"), "float32", VERSIONS) for place in ("here", "there")}
    assert len(keys) == 1


def test_content_precision_and_versions_each_change_the_key(tmp_path: Path) -> None:
    files, other_files = written(tmp_path / "a", "{}"), written(tmp_path / "b", "[]")
    keys = {
        build_key(files, "float32", VERSIONS),
        build_key(other_files, "float32", VERSIONS),
        build_key(files, "bfloat16", VERSIONS),
        build_key(files, "float32", {"torch": "2.14.0"}),
    }
    assert len(keys) == 4


def test_every_library_of_the_export_is_installed_and_named() -> None:
    assert {"torch", "transformers", "optimum", "onnxruntime"} <= library_versions().keys()
