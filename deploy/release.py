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
    found = {
        name: re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name, pattern in PLACES.items()
    }
    return {name: match and match[1] for name, match in found.items()}


def faults(named: Mapping[str, str | None], changed: str, tags: str) -> list[str]:
    """Return what is missing: `changed` and `tags` are git's lists of files and of tags."""
    version = named["pyproject.toml"]
    others = [
        f"{name} has version {found}; pyproject.toml has {version}"
        for name, found in named.items()
        if found != version
    ]
    if changed:
        others.append(f"the tree has changes that are not committed:\n{changed}")
    if f"v{version}" in tags.split():
        others.append(f"the tag v{version} exists: choose a new version")
    return others


def git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.rstrip()


def main() -> int:
    named = versions(ROOT)
    found = faults(named, git("status", "--porcelain"), git("tag"))
    version = named["pyproject.toml"]
    print("\n".join(found) or f"git tag -a v{version} -m 'Diptych {version}'")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
