"""A release has one version everywhere, a dated changelog, a clean tree and a new tag."""

from pathlib import Path

from deploy.release import PLACES, faults, versions

SAME = dict.fromkeys(PLACES, "1.2.3")


def test_a_complete_release_has_no_faults() -> None:
    assert faults(SAME, "", "v1.2.2") == []


def test_a_place_with_another_version_is_named() -> None:
    (fault,) = faults(SAME | {"client/pyproject.toml": "1.2.2"}, "", "")
    assert fault == "client/pyproject.toml has version 1.2.2; pyproject.toml has 1.2.3"


def test_a_changelog_without_a_dated_heading_is_named(tmp_path: Path) -> None:
    for name in PLACES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('version = "1.2.3"\n## 1.2.3\n', encoding="utf-8")
    assert versions(tmp_path)["pyproject.toml"] == "1.2.3"
    assert versions(tmp_path)["CHANGELOG.md"] is None


def test_uncommitted_changes_and_an_existing_tag_are_faults() -> None:
    assert len(faults(SAME, " M README.md", "v1.2.2\nv1.2.3")) == 2
