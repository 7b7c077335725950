import pytest

from service.settings import Settings, SettingsError
from service.supervision.roles import Role

MODELS = ("a", "b")
URLS = ("a=http://10.0.0.1:3000",)


@pytest.mark.parametrize("arguments", [(), ("gateway",), ("runner", "a")])
def test_arguments_round_trip(arguments: tuple[str, ...]) -> None:
    assert Role.parse(arguments).arguments == arguments


@pytest.mark.parametrize("arguments", [("a",), ("runner",), ("gateway", "a"), ("runner", "a", "b"), ("encoder", "a")])
def test_other_arguments_are_rejected_with_the_usage(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"is not a role; usage: python -m service \[gateway"):
        Role.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "front", "behind"),
    [((), "diptych", ["b-runner"]), (("gateway",), "diptych", []), (("runner", "a"), "a-runner", [])],
)
def test_role_determines_the_processes(arguments: tuple[str, ...], front: str, behind: list[str]) -> None:
    role, values = Role.parse(arguments), Settings(models=MODELS, runner_urls=URLS)
    assert (role.front(), role.runners_behind(values)) == (front, behind)


def test_duplicate_model_runs_once() -> None:
    assert Role.parse(()).runners_behind(Settings(models=("a", "a"))) == ["a-runner"]


def test_runner_alone_serves_its_model_on_this_host() -> None:
    environment = {"DIPTYCH_MODELS": "b", "DIPTYCH_RUNNER_URLS": "b=http://x", "DIPTYCH_PORT": "1", "PATH": "/bin"}
    alone = Role.parse(("runner", "a")).environment(environment)
    assert alone == {"DIPTYCH_MODELS": "a", "DIPTYCH_PORT": "1", "PATH": "/bin"}
    assert Role.parse(("gateway",)).environment(environment) == environment


def test_runner_alone_keeps_its_own_device() -> None:
    environment = {"DIPTYCH_DEVICES": "b=cuda:1, a=cuda:0"}
    assert Role.parse(("runner", "a")).environment(environment)["DIPTYCH_DEVICES"] == "a=cuda:0"


def test_gateway_alone_needs_the_url_of_every_runner() -> None:
    values = Settings(models=MODELS, runner_urls=URLS)
    with pytest.raises(SettingsError, match="DIPTYCH_RUNNER_URLS has no URL for b"):
        Role.parse(("gateway",)).check(values)
    Role.parse(()).check(values)
    Role.parse(("gateway",)).check(Settings(models=("a",), runner_urls=URLS))
