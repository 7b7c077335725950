"""Everything that is installed or pulled has an exact version but torch, and everything imported is
named.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions, requires
from itertools import chain

import pytest
import yaml
from packaging.requirements import Requirement

from tests.support.export_cli import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
GROUPS = PROJECT["dependency-groups"]
REQUIREMENTS = sorted(path.name for path in ROOT.glob("requirements*.txt"))
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
EXACT_IMAGE = re.compile(r".*:v?\d+\.\d+\.\d+(-[a-z-]+)?")
OWN_IMAGE = "diptych"
NOT_LOCKED = {"onnxruntime", "torch"}  # builds differ by device
SERVED = ("service", "runners", "wire", "imaging", "tasks")
OURS = {*SERVED, "models"}


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def imported() -> Iterator[str]:
    """Yield the top-level names that the service imports."""
    for path in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in SERVED):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module)


EXACT = r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[\w.]+"  # may have a marker of Python or machine


@pytest.mark.parametrize("name", [*REQUIREMENTS, *GROUPS])
def test_every_requirement_has_an_exact_version(name: str) -> None:
    required = GROUPS.get(name) or lines(name)
    pins = [line for line in required if isinstance(line, str)]  # the others include a group
    assert pins
    assert [
        line for line in pins if not re.fullmatch(rf"{EXACT}( *;.*)?|torch(vision)?>=.*,<.*", line)
    ] == []


def test_every_package_that_the_service_imports_is_required() -> None:
    required = {re.split(r"[=>\[]", line)[0].lower() for line in lines("requirements.txt")}
    modules = {name.partition(".")[0] for name in imported()} - set(sys.stdlib_module_names) - OURS
    distributions = packages_distributions()
    missing = set()
    for name in modules:
        names = {each.lower().replace("_", "-") for each in distributions[name]}
        if not required & names:
            missing.add(name)
    assert not missing


def locked() -> dict[str, str]:
    """Return the version of each package in the lock file; each has hashes and nothing else."""
    text = "\n".join(lines("requirements.lock")).replace(" \\\n    ", " ")
    entries = [
        re.fullmatch(r"(\S+)==(\S+)((?: --hash=sha256:[0-9a-f]{64})+)", line)
        for line in text.splitlines()
    ]
    assert all(entries)
    return {entry[1]: entry[2] for entry in entries if entry}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_has_the_version_of_every_requirement_that_is_the_same_on_all_devices() -> None:
    pinned = dict(re.split("==|>=", line)[:2] for line in lines("requirements.txt"))
    assert {
        name: version for name, version in pinned.items() if name not in NOT_LOCKED
    }.items() <= locked().items()


def test_the_lock_has_what_its_packages_and_torch_require() -> None:
    versions = locked()
    installed = {canonical(name) for name in chain.from_iterable(packages_distributions().values())}
    for name in {*versions, *NOT_LOCKED} & installed:  # some are of other releases of Python 3.11
        needed = [Requirement(each) for each in requires(name) or ()]
        required = {
            canonical(each.name)
            for each in needed
            if not each.marker or each.marker.evaluate({"extra": ""})
        }
        of_devices = {each for each in required if each.startswith(("nvidia-", "cuda-", "triton"))}
        assert required - of_devices <= versions.keys(), name


def test_the_image_installs_the_lock_by_hash_before_anything_else() -> None:
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
    first, second = re.findall(r"/opt/diptych/venv/bin/pip install (.*) \\$", text, re.MULTILINE)
    assert "--require-hashes -r requirements.lock" in first
    assert second.endswith("-r requirements.txt")


@pytest.mark.parametrize("name", sorted(COMPOSE))
def test_a_container_of_compose_has_an_exact_image_and_limits(name: str) -> None:
    service = COMPOSE[name]
    assert service["image"] == OWN_IMAGE or EXACT_IMAGE.fullmatch(service["image"])
    assert service["mem_limit"]
    assert service["pids_limit"]


def test_the_base_image_has_an_exact_version() -> None:
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text(encoding="utf-8")
    (base,) = re.findall(r"^ARG BASE_IMAGE=(.*)$", text, re.MULTILINE)
    assert EXACT_IMAGE.fullmatch(base)
