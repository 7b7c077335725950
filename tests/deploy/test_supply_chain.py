"""Everything that is installed or pulled has an exact version but torch, and everything imported is named."""

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from itertools import chain

import pytest
import yaml

from tests.support.export_cli import ROOT

REQUIREMENTS = sorted(ROOT.glob("requirements*.txt"))
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))["services"]
EXACT_IMAGE = re.compile(r".*:v?\d+\.\d+\.\d+(-[a-z-]+)?")
OWN_IMAGE = "diptych"
OURS = {"service", "runners", "tasks", "models"}


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def imported() -> Iterator[str]:
    """Yield the top-level names that the service imports."""
    for path in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in ("service", "runners", "tasks")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield str(node.module)


@pytest.mark.parametrize("name", [path.name for path in REQUIREMENTS])
def test_every_requirement_has_an_exact_version(name: str) -> None:
    unpinned = [
        line
        for line in lines(name)
        if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[\w.]+|-r .*|-e \./client|torch(vision)?>=.*,<.*", line)
    ]
    assert not unpinned


def test_every_package_that_the_service_imports_is_required() -> None:
    required = {re.split(r"[=>\[]", line)[0].lower() for line in lines("requirements.txt")}
    modules = {name.partition(".")[0] for name in imported()} - set(sys.stdlib_module_names) - OURS
    distributions = packages_distributions()
    missing = {
        name for name in modules if not required & {each.lower().replace("_", "-") for each in distributions[name]}
    }
    assert not missing


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
