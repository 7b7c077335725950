"""Everything that is installed or pulled has an exact version but torch, and everything imported is
named.
"""

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires
from itertools import chain

import pytest
from packaging.requirements import Requirement

from tests.deploy.test_container import COMPOSE, CONTAINERFILE
from tests.support.export_cli import ROOT
from tests.test_structure import packages

GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
REQUIREMENTS = sorted(path.name for path in ROOT.glob("requirements*.txt"))
EXACT_IMAGE = re.compile(r".*:v?\d+\.\d+\.\d+(-[a-z-]+)?")
# may have a marker of Python or machine
EXACT = re.compile(r"[\w.-]+(\[[a-z,]+\])?==[\w.]+( *;.*)?|torch(vision)?>=.*,<.*")
NOT_LOCKED = {"onnxruntime", "torch"}  # builds differ by device
SERVED = ("service", "runners", "wire", "imaging", "tasks")


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("name", [*REQUIREMENTS, *GROUPS])
def test_requirements_have_exact_versions(name: str) -> None:
    required = GROUPS.get(name) or lines(name)
    pins = [line for line in required if isinstance(line, str)]  # the others include a group
    assert pins
    assert [line for line in pins if not EXACT.fullmatch(line)] == []


def test_imported_packages_are_required() -> None:
    required = set()
    for line in lines("requirements.txt") + lines("requirements-gpu.txt"):
        required.add(canonical(Requirement(line).name))
    paths = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in SERVED)
    modules = set().union(*map(packages, paths))
    distributions = packages_distributions()
    for module in modules - set(sys.stdlib_module_names) - {*SERVED, "models"}:
        assert required & set(map(canonical, distributions[module])), module


def locked() -> dict[str, str]:
    """Return the version of each package in the lock file; each has hashes and nothing else."""
    text = "\n".join(lines("requirements.lock")).replace(" \\\n    ", " ")
    versions = {}
    for line in text.splitlines():
        entry = re.fullmatch(r"(\S+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
        assert entry, line
        versions[entry[1]] = entry[2]
    return versions


def test_lock_has_the_required_versions() -> None:
    for line in lines("requirements.txt"):
        name, version = re.split("==|>=", line)[:2]
        assert name in NOT_LOCKED or locked()[name] == version
    assert f"nvidia-ml-py=={locked()['nvidia-ml-py']}" in lines("requirements-gpu.txt")


def test_lock_has_what_its_packages_require() -> None:
    versions = locked()
    installed = set(map(canonical, chain.from_iterable(packages_distributions().values())))
    for name in {*versions, *NOT_LOCKED} & installed:  # some are of other releases of Python 3.11
        for requirement in map(Requirement, requires(name) or ()):
            needed = canonical(requirement.name)
            is_of_a_device = needed.startswith(("nvidia-", "cuda-", "triton"))
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                assert is_of_a_device or needed in versions, name


def test_image_installs_the_lock_by_hash_first() -> None:
    pattern = r"/opt/diptych/venv/bin/pip install (.*) \\$"
    first, second = re.findall(pattern, CONTAINERFILE, re.MULTILINE)
    assert "--require-hashes -r requirements.lock" in first
    assert second.endswith("-r requirements.txt")


def test_images_have_exact_versions_and_limits() -> None:
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", CONTAINERFILE, re.MULTILINE)
    assert EXACT_IMAGE.fullmatch(base)
    for name, service in COMPOSE.items():
        assert name == "diptych" or EXACT_IMAGE.fullmatch(service["image"])
        assert service["mem_limit"]
        assert service["pids_limit"]
