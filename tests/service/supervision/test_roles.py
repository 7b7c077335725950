import sys
from pathlib import Path

import pytest
import yaml

from service.__main__ import main
from service.inference.served_models import served_entries
from service.settings import Settings, SettingsError
from service.supervision.roles import USAGE, Role, check_runner_urls
from tests.support.catalog import ROOT

MODELS = ("florence-2-mini", "paligemma-mini")
A, B = MODELS
URLS = (f"{A}=http://10.0.0.1:3000",)


@pytest.mark.parametrize(
    "arguments", [("a",), ("runner",), ("gateway", "a"), ("runner", "a", "b"), ("encoder", "a")]
)
def test_unknown_arguments(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"is not a role; usage: python -m service \[gateway"):
        Role.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "front", "behind"),
    [
        ((), "diptych", [f"{B}-runner"]),
        (("gateway",), "diptych", []),
        (("runner", A), f"{A}-runner", []),
    ],
)
def test_role_determines_the_processes(
    arguments: tuple[str, ...], front: str, behind: list[str]
) -> None:
    role = Role.parse(arguments)
    values = Settings(models=(*MODELS, B), runner_urls=URLS)
    assert (role.front(), role.runners_behind(values)) == (front, behind)
    assert role.runners_behind(values.model_copy(update={"processes": "one"})) == []
    if role.name == "gateway":
        with pytest.raises(SettingsError, match="RUNNER_URLS has no URL for paligemma-mini"):
            check_runner_urls(role, values)
    else:
        check_runner_urls(role, values)


def test_runner_alone() -> None:
    environment = {
        "DIPTYCH_MODELS": "b",
        "DIPTYCH_RUNNER_URLS": "b=http://x",
        "DIPTYCH_PROCESSES": "one",
        "DIPTYCH_DEVICES": "b=cuda:1, a=cuda:0",
        "DIPTYCH_PORT": "1",
        "PATH": "/bin",
    }
    alone = Role.parse(("runner", "a")).environment(environment)
    expected = {"DIPTYCH_MODELS": "a", "DIPTYCH_DEVICES": "a=cuda:0"}
    assert alone == expected | {"DIPTYCH_PORT": "1", "PATH": "/bin"}
    assert Role.parse(("gateway",)).environment(environment) == environment


def catalog_with(folder: Path, *adapters: str) -> Path:
    """Write a catalog that also has adapters of the first model."""
    file = folder / "catalog.yaml"
    rows = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    rows += [{"id": name, "adapter_of": A, "source": "tuned"} for name in adapters]
    file.write_text(yaml.safe_dump({"models": rows}), encoding="utf-8")
    return file


def test_adapters_run_with_their_base(tmp_path: Path) -> None:
    catalog = catalog_with(tmp_path, "tuned-0", "tuned-1")
    values = Settings(models=(B, "tuned-0", A), catalog=catalog)
    assert Role.parse(()).runners_behind(values) == [f"{A}-runner", f"{B}-runner"]
    urls = (f"{A}=http://x", f"{B}=http://y")
    check_runner_urls(Role.parse(("gateway",)), values.model_copy(update={"runner_urls": urls}))
    environment = {"DIPTYCH_MODELS": ", ".join(values.models), "DIPTYCH_CATALOG": str(catalog)}
    assert Role.parse(("runner", A)).environment(environment)["DIPTYCH_MODELS"] == f"{A},tuned-0"
    assert Role.parse(("runner", B)).environment(environment)["DIPTYCH_MODELS"] == B


def test_adapter_needs_its_base(tmp_path: Path) -> None:
    values = Settings(models=("tuned",), catalog=catalog_with(tmp_path, "tuned"))
    with pytest.raises(SettingsError, match=f"has tuned, an adapter of {A}; add {A}"):
        served_entries(values)


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["service", word])
    main()
    assert capsys.readouterr().out.startswith(f"usage: {USAGE}\n")
