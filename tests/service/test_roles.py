import pytest

from service.roles import Role
from service.settings import Settings, SettingsError

MODELS = ("a", "b")
URLS = ("a=http://10.0.0.1:3000", "a=http://10.0.0.2:3000")


@pytest.mark.parametrize("arguments", [(), ("gateway",), ("encoder", "a"), ("decoder", "a")])
def test_arguments_are_read_and_written(arguments: tuple[str, ...]) -> None:
    assert Role.parse(arguments).arguments == arguments


@pytest.mark.parametrize("arguments", [("a",), ("encoder",), ("gateway", "a"), ("encoder", "a", "b"), ("",)])
def test_other_arguments_are_refused_with_what_is_allowed(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"is no part of the service; python -m service \[gateway"):
        Role.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "front", "behind"),
    [
        ((), "diptych", ["a-decoder", "b-encoder", "b-decoder"]),
        (("gateway",), "diptych", []),
        (("encoder", "a"), "a-encoder", []),
        (("decoder", "b"), "b-decoder", []),
    ],
)
def test_a_role_has_its_processes(arguments: tuple[str, ...], front: str, behind: list[str]) -> None:
    role, values = Role.parse(arguments), Settings(models=MODELS, encoder_urls=URLS)
    assert (role.front(), role.runners_behind(values)) == (front, behind)


def test_a_model_that_is_named_twice_runs_once() -> None:
    assert Role.parse(()).runners_behind(Settings(models=("a", "a"))) == ["a-encoder", "a-decoder"]


def test_a_runner_alone_serves_its_model_and_runs_here() -> None:
    environment = {"DIPTYCH_MODELS": "b", "DIPTYCH_ENCODER_URLS": "b=http://x", "DIPTYCH_PORT": "1", "PATH": "/bin"}
    alone = Role.parse(("encoder", "a")).environment(environment)
    assert alone == {"DIPTYCH_MODELS": "a", "DIPTYCH_PORT": "1", "PATH": "/bin"}
    assert Role.parse(("gateway",)).environment(environment) == environment


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (Settings(models=("a",), encoder_urls=URLS), "DIPTYCH_DECODER_URLS has no URL of a"),
        (Settings(models=MODELS, encoder_urls=URLS, decoder_urls=URLS), "DIPTYCH_ENCODER_URLS has no URL of b"),
    ],
)
def test_a_gateway_alone_needs_a_url_of_every_runner(values: Settings, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Role.parse(("gateway",)).check(values)
    Role.parse(()).check(values)


def test_a_gateway_alone_with_all_urls_starts() -> None:
    Role.parse(("gateway",)).check(Settings(models=("a",), encoder_urls=URLS, decoder_urls=URLS))
