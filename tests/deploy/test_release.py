"""A release has one version everywhere, a dated changelog, a clean tree and a new tag."""

from pathlib import Path

from deploy.release import PLACES, faults, versions

SAME = dict.fromkeys(PLACES, "1.2.3")


def test_faults_of_a_release() -> None:
    assert faults(SAME, "", "v1.2.2") == []
    (fault,) = faults(SAME | {"client/pyproject.toml": "1.2.2"}, "", "")
    assert fault == "client/pyproject.toml has version 1.2.2; pyproject.toml has 1.2.3"
    assert len(faults(SAME, " M README.md", "v1.2.2\nv1.2.3")) == 2


def test_changelog_needs_a_dated_heading(tmp_path: Path) -> None:
    for name in PLACES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('version = "1.2.3"\n## 1.2.3\n', encoding="utf-8")
    assert versions(tmp_path)["pyproject.toml"] == "1.2.3"
    assert versions(tmp_path)["CHANGELOG.md"] is None
