"""Checks that a release is complete: one version everywhere, a dated changelog, a clean tree, a new
tag.

`make release` runs all tests, then this. It prints the command that tags the release, or what is
missing with status 1. It changes nothing.
"""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {  # where the version is written, and how
    "pyproject.toml": r'^version = "(.+)"$',
    "client/pyproject.toml": r'^version = "(.+)"$',
    "service/__init__.py": r'^VERSION = "(.+)"$',  # version of the OpenAPI document
    "docs/operations.md": r"IMAGE=diptych:([\d.]+)$",
    "CHANGELOG.md": r"^## (\S+), \d{4}-\d\d-\d\d$",  # the newest is first
}


def versions(root: Path) -> dict[str, str | None]:
    """Return the version that each place names, or None."""
    placed = dict[str, str | None]()
    for place, pattern in PLACES.items():
        match = re.search(pattern, (root / place).read_text(encoding="utf-8"), re.MULTILINE)
        placed[place] = match and match[1]
    return placed


def faults(versions: Mapping[str, str | None], changes: str, tags: str) -> list[str]:
    """Return what is missing: `changes` and `tags` are git's lists of files and of tags."""
    expected = versions["pyproject.toml"]
    messages = list[str]()
    for place, version in versions.items():
        if version != expected:
            messages.append(f"{place} has version {version}; pyproject.toml has {expected}")
    if changes:
        messages.append(f"the tree has changes that are not committed:\n{changes}")
    if f"v{expected}" in tags.split():
        messages.append(f"the tag v{expected} exists: choose a new version")
    return messages


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.rstrip()


def main() -> int:
    placed = versions(ROOT)
    missing = faults(placed, git("status", "--porcelain"), git("tag"))
    version = placed["pyproject.toml"]
    print("\n".join(missing) or f"git tag -a v{version} -m 'Diptych {version}'")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
