import sys
from pathlib import Path

import pytest
import yaml

from service.__main__ import main
from service.inference.served_models import served_entries
from service.settings import Settings, SettingsError
from service.supervision.checks import check_runner_urls
from service.supervision.roles import USAGE, Role
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
    values = Settings(models=MODELS, runner_urls=URLS)
    assert (role.front(), role.runners_behind(values)) == (front, behind)


def test_duplicate_model_runs_once() -> None:
    assert Role.parse(()).runners_behind(Settings(models=(A, A))) == [f"{A}-runner"]


def test_one_process_has_no_runner_behind() -> None:
    assert Role.parse(()).runners_behind(Settings(models=MODELS, processes="one")) == []


def test_runner_alone() -> None:
    environment = {
        "DIPTYCH_MODELS": "b",
        "DIPTYCH_RUNNER_URLS": "b=http://x",
        "DIPTYCH_PROCESSES": "one",
        "DIPTYCH_PORT": "1",
        "PATH": "/bin",
    }
    alone = Role.parse(("runner", "a")).environment(environment)
    assert alone == {"DIPTYCH_MODELS": "a", "DIPTYCH_PORT": "1", "PATH": "/bin"}
    assert Role.parse(("gateway",)).environment(environment) == environment


def test_adapters_run_with_their_base(tmp_path: Path) -> None:
    catalog = tmp_path / "catalog.yaml"
    rows = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    tuned = [{"id": f"tuned-{index}", "adapter_of": A, "source": "tuned"} for index in range(2)]
    catalog.write_text(yaml.safe_dump({"models": [*rows, *tuned]}), encoding="utf-8")
    values = Settings(models=(B, "tuned-0", A), catalog=catalog)
    assert Role.parse(()).runners_behind(values) == [f"{A}-runner", f"{B}-runner"]
    urls = (f"{A}=http://x", f"{B}=http://y")
    check_runner_urls(Role.parse(("gateway",)), values.model_copy(update={"runner_urls": urls}))
    environment = {"DIPTYCH_MODELS": ", ".join(values.models), "DIPTYCH_CATALOG": str(catalog)}
    assert Role.parse(("runner", A)).environment(environment)["DIPTYCH_MODELS"] == f"{A},tuned-0"
    assert Role.parse(("runner", B)).environment(environment)["DIPTYCH_MODELS"] == B


@pytest.mark.parametrize(
    ("models", "settings", "message"),
    [
        ("tuned", {}, f"has tuned, which is an adapter of {A} and runs in its runner; add {A}"),
        (
            f"{A},tuned",
            {"devices": "tuned=cpu"},
            f"DEVICES names tuned, an adapter; name its base {A}",
        ),
        (
            f"{A},tuned",
            {"runner_urls": "tuned=http://x"},
            f"RUNNER_URLS names tuned, an adapter; name its base {A}",
        ),
    ],
)
def test_adapter_has_no_runner(
    tmp_path: Path, models: str, settings: dict[str, str], message: str
) -> None:
    catalog = tmp_path / "catalog.yaml"
    rows = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    tuned = {"id": "tuned", "adapter_of": A, "source": "tuned"}
    catalog.write_text(yaml.safe_dump({"models": [*rows, tuned]}), encoding="utf-8")
    values = Settings.model_validate({"models": models, "catalog": catalog} | settings)
    with pytest.raises(SettingsError, match=message):
        served_entries(values)


def test_device_of_a_runner_alone() -> None:
    environment = {"DIPTYCH_DEVICES": "b=cuda:1, a=cuda:0"}
    assert Role.parse(("runner", "a")).environment(environment)["DIPTYCH_DEVICES"] == "a=cuda:0"


def test_gateway_alone_needs_urls() -> None:
    values = Settings(models=MODELS, runner_urls=URLS)
    with pytest.raises(SettingsError, match="DIPTYCH_RUNNER_URLS has no URL for paligemma-mini"):
        check_runner_urls(Role.parse(("gateway",)), values)
    check_runner_urls(Role.parse(()), values)
    check_runner_urls(Role.parse(("gateway",)), Settings(models=(A,), runner_urls=URLS))


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["service", word])
    main()
    assert capsys.readouterr().out.startswith(f"usage: {USAGE}\n")
