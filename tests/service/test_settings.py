"""Options of runners, from the settings."""

import re
from dataclasses import replace

import pytest

from service.inference.core import CoreLimits
from service.inference.served_models import max_slots, runner_options
from service.settings import BYTES_PER_MB, REMOVED, Settings, SettingsError, read_settings, variable
from tests.support.catalog import FLORENCE, PALIGEMMA


def test_defaults_from_the_environment() -> None:
    variables: dict[str, str] = {"PATH": "/bin", "BENTOML_HOME": "x", "XDIPTYCH_PORT": "y"}
    for name, value in Settings().model_dump().items():
        if value is not None:
            text = ", ".join(value) if isinstance(value, tuple) else str(value)
            variables[variable(name)] = text
    assert read_settings(variables) == read_settings({}) == Settings()


@pytest.mark.parametrize("name", ["DIPTYCH_PROT", "DIPTYCH_port"])
def test_unknown_variable(name: str) -> None:
    with pytest.raises(
        SettingsError,
        match=rf"^{name} is not a setting \(did you mean DIPTYCH_PORT\?\);"
        " the settings are DIPTYCH_ADAPTERS, .*DIPTYCH_PORT",
    ):
        read_settings({name: "1"})


@pytest.mark.parametrize("name", REMOVED)
def test_removed_setting_is_named_with_its_replacement(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({name: "1"})
    assert str(caught.value) == f"{name} is no longer a setting: {REMOVED[name]}"
    mentioned = set(re.findall(r"DIPTYCH_\w+", REMOVED[name]))
    assert mentioned <= set(map(variable, Settings.model_fields))


HTTP_URL = "an http(s) URL of host, port and path, without credentials and query"
# the first is empty
NO_HTTP_URLS = " localhost:4318 grpc://a:4317 http:// http://a?b=c http://[::1 http://a:65536"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("DIPTYCH_PORT", "0", "greater than or equal to 1"),
        ("DIPTYCH_PORT", "http", "valid integer"),
        ("DIPTYCH_MODELS", " , ", "at least 1 item"),
        ("DIPTYCH_RUNNER_URLS", "a=10.0.0.1", "'a=10.0.0.1' must be MODEL=http://HOST:PORT"),
        ("DIPTYCH_RUNNER_URLS", "a=https://a", "such as florence-2-mini=http://10.0.0.1:3000"),
        ("DIPTYCH_RUNNER_URLS", "a=http://a:1,a=http://b:1", "a model occurs twice"),
        ("DIPTYCH_ENCODER_MAX_BATCH_SIZE", "1", "the minimum is 2, and 0 selects"),
        (
            "DIPTYCH_URL_HOSTS",
            "a.example,http://b",
            "'http://b' must be a host name, an IP address",
        ),
        ("DIPTYCH_TRUSTED_PROXIES", "10.0.0.1,proxy", "'proxy' must be an IP address or a network"),
        ("DIPTYCH_TRUSTED_PROXIES", "10.0.0.1/8", "has host bits set"),
        ("DIPTYCH_LABEL_STUDIO_URL", "http://a?b", HTTP_URL),
        *(("DIPTYCH_OTLP_ENDPOINT", url, HTTP_URL) for url in NO_HTTP_URLS.split(" ")),
        ("DIPTYCH_IMAGES_FOLDER", "redis://a:6379", "it must be a folder, not a URL"),
    ],
)
def test_invalid_value(name: str, value: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings({name: value})
    assert str(caught.value).startswith(f"{name}={value!r} is invalid: ")
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("memory_gb", "max_request_mb"),
    [(8, 1_000), (1, 250), (0.1, 120)],  # fifty bodies; a quarter; six, whatever the memory
)
def test_memory_of_requests_follows_bodies_and_memory(
    memory_gb: float, max_request_mb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.settings.memory_limit_bytes", lambda: int(memory_gb * 1e9))
    assert read_settings({}).max_request_bytes == max_request_mb * BYTES_PER_MB


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DIPTYCH_OTLP_ENDPOINT", "http://user:secret@a:4318"),
        ("DIPTYCH_IMAGES_FOLDER", "redis://:se/cret@a"),
    ],
)
def test_credentials_are_not_reported(name: str, url: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name}='[a-z]+://…@a") as caught:
        read_settings({name: url})
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("DIPTYCH_METRICS_NEED_KEY", "true", "DIPTYCH_API_KEYS_FILE"),
        ("DIPTYCH_TLS_CERTIFICATE_FILE", "a.pem", "DIPTYCH_TLS_KEY_FILE"),
        ("DIPTYCH_TLS_KEY_FILE", "a.pem", "DIPTYCH_TLS_CERTIFICATE_FILE"),
    ],
)
def test_required_settings(name: str, value: str, other: str) -> None:
    with pytest.raises(
        SettingsError, match=f"^{name} is set and requires {other}, which is not set$"
    ):
        read_settings({name: value})
    read_settings({name: value, other: "b.pem"})


def test_runner_url_belongs_to_its_model() -> None:
    values = read_settings(
        {"DIPTYCH_RUNNER_URLS": "paligemma-mini=http://10.0.0.1:1/, florence-2-mini=http://a:2"}
    )
    assert values.runner_url("paligemma-mini") == "http://10.0.0.1:1"
    assert values.runner_url("florence-2-mini") == "http://a:2"
    assert read_settings({}).runner_url("paligemma-mini") is None


def test_device_of_a_model() -> None:
    values = read_settings({"DIPTYCH_DEVICES": "florence-2-mini=cuda:1", "DIPTYCH_DEVICE": "cpu"})
    assert values.device_of("florence-2-mini") == ("cuda", 1)
    assert values.device_of("paligemma-mini") == ("cpu", None)
    assert read_settings({"DIPTYCH_DEVICES": "paligemma-mini=cuda"}).device_of(
        "paligemma-mini"
    ) == ("cuda", None)


@pytest.mark.parametrize(
    ("devices", "reason"),
    [
        ("a=gpu", "must be MODEL=cpu, MODEL=cuda or MODEL=cuda:INDEX"),
        ("cuda:1", "must be MODEL=cpu"),
        ("a=cpu:0", "must be MODEL=cpu"),
        ("a=cpu,a=cuda:0", "a model occurs twice"),
        ("b=cpu", r"^DIPTYCH_DEVICES names b, but DIPTYCH_MODELS=a$"),
    ],
)
def test_invalid_device_of_a_model(devices: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        read_settings({"DIPTYCH_MODELS": "a", "DIPTYCH_DEVICES": devices})
    with pytest.raises(SettingsError, match=r"^DIPTYCH_RUNNER_URLS names b, but DIPTYCH_MODELS=a$"):
        read_settings({"DIPTYCH_MODELS": "a", "DIPTYCH_RUNNER_URLS": "b=http://h:2"})


ENTRIES = (FLORENCE, PALIGEMMA)


@pytest.mark.parametrize(
    ("environment", "slots", "running"),
    [
        ({"DIPTYCH_DEVICE": "cpu"}, 16, 24),
        ({"DIPTYCH_DEVICE": "cuda"}, 64, 96),
        ({"DIPTYCH_DEVICE": "cpu", "DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:0"}, 64, 96),
        ({"DIPTYCH_DEVICE": "cuda", "DIPTYCH_DECODER_MAX_BATCH_SIZE": "8"}, 8, 12),
        ({"DIPTYCH_DEVICE": "cuda", "DIPTYCH_MAX_RUNNING_REQUESTS": "7"}, 64, 7),
    ],
)
def test_slots_bound_requests(environment: dict[str, str], slots: int, running: int) -> None:
    values = read_settings(environment)
    max_running = CoreLimits.from_settings(values).max_running_requests
    assert (max_slots(values), max_running) == (slots, running)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 2),
        ({"DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:0,{PALIGEMMA.id}=cuda:1"}, 1),
        ({"DIPTYCH_DEVICES": f"{FLORENCE.id}=cuda:1,{PALIGEMMA.id}=cuda:1"}, 2),
        ({"DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cuda:0"}, 2),
        ({"DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cpu"}, 1),
        ({"DIPTYCH_DEVICE": "auto", "DIPTYCH_DEVICES": f"{PALIGEMMA.id}=cuda:0"}, 2),
        ({"DIPTYCH_RUNNER_URLS": f"{PALIGEMMA.id}=http://10.0.0.1:3000"}, 1),
    ],
)
def test_runners_share_a_gpu(environment: dict[str, str], expected: int) -> None:
    options = runner_options(
        FLORENCE.id, read_settings({"DIPTYCH_DEVICE": "cuda", **environment}), ENTRIES
    )
    assert options.num_sharing_gpu == expected
    assert options.limits.num_slots == 0


def test_options_of_a_runner() -> None:
    environment = {
        "DIPTYCH_START_TIMEOUT_S": "5",
        "DIPTYCH_OTLP_ENDPOINT": "http://a:4318",
    }
    entries = (PALIGEMMA, replace(FLORENCE, aliases=("an/alias",)))
    options = runner_options(FLORENCE.id, read_settings(environment), entries)
    assert (options.start_timeout_s, options.aliases) == (5, ("an/alias",))
    assert options.otlp_endpoint == "http://a:4318"
    default = runner_options(PALIGEMMA.id, read_settings({}), entries)
    assert default.aliases == ()
