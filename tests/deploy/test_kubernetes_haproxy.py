"""HAProxy beside the gateway in the manifests of deploy/kubernetes."""

import re

import pytest

from tests.support.export_cli import EMBEDDED
from tests.support.haproxy import CONFIGURATION, FRONT, MODELS
from tests.support.kubernetes import (
    REPLICATED,
    Object,
    built,
    environment,
    needs_kubectl,
    of_kind,
    ports,
    sidecar,
)

pytestmark = needs_kubectl


STOP_S = 20  # allowed beside the requests' time (README.md, "Faults")


@pytest.fixture(params=REPLICATED)
def replicated(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


def sections() -> dict[str, tuple[str, int, str, int]]:
    """Return the bound port, the number of servers, their host and their port of each model of
    models.cfg.
    """
    found = re.findall(
        r"^listen (\S+)\n    bind 127\.0\.0\.1:(\d+)\n.*\n    server-template runner (\d+)"
        r' "(\S+):(\d+)"$',
        MODELS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {
        name: (port, int(number), host, int(target)) for name, port, number, host, target in found
    }


def test_the_gateway_knows_haproxys_port_for_every_model_and_haproxy_the_service(
    replicated: tuple[Object, ...],
) -> None:
    gateway = of_kind(replicated, "Deployment")["gateway"]
    services = of_kind(replicated, "Service")
    urls = dict(
        pair.split("=")
        for pair in environment(replicated, gateway)["DIPTYCH_RUNNER_URLS"].split(",")
    )
    assert urls == {name: f"http://127.0.0.1:{port}" for name, (port, *_) in sections().items()}
    assert set(urls) == set(EMBEDDED)
    for name, (_, _, host, port) in sections().items():
        service, _, domain = host.partition(".")
        assert service == f"{name}-runner"
        assert domain == "${RUNNERS_DOMAIN}"
        assert [each["port"] for each in services[service]["spec"]["ports"]] == [port]


def test_haproxy_is_a_sidecar_with_the_shipped_configuration(
    replicated: tuple[Object, ...],
) -> None:
    gateway = of_kind(replicated, "Deployment")["gateway"]
    haproxy = sidecar(gateway, "haproxy")
    assert haproxy["restartPolicy"] == "Always"  # ready before the gateway, ended after it
    (mount,) = haproxy["volumeMounts"]
    assert haproxy["args"][::2] == [
        "haproxy",
        *(f"{mount['mountPath']}/{file.name}" for file in (CONFIGURATION, MODELS)),
    ]
    (volume,) = [
        each
        for each in gateway["spec"]["template"]["spec"]["volumes"]
        if each["name"] == mount["name"]
    ]
    files = of_kind(replicated, "ConfigMap")[volume["configMap"]["name"]]["data"]
    assert files == {
        file.name: file.read_text(encoding="utf-8") for file in (CONFIGURATION, MODELS, FRONT)
    }
    variables = {each["name"]: each.get("value") for each in haproxy["env"]}
    assert variables["RUNNERS_DOMAIN"] == "$(NAMESPACE).svc.cluster.local"
    assert variables["STATUS_ADDRESS"] == f"*:{ports(gateway)['haproxy']}"


def test_haproxy_waits_longer_than_a_request_may_take(replicated: tuple[Object, ...]) -> None:
    text = CONFIGURATION.read_text(encoding="utf-8")
    request_s = int(
        environment(replicated, of_kind(replicated, "Deployment")["gateway"])[
            "DIPTYCH_REQUEST_TIMEOUT_S"
        ]
    )
    timeouts = {
        name: int(seconds) for name, seconds in re.findall(r"timeout (client|server) (\d+)s", text)
    }
    assert min(timeouts["client"], timeouts["server"]) > request_s
    (held_s,) = re.findall(r"hold obsolete (\d+)s", MODELS.read_text(encoding="utf-8"))
    # an address is kept while its pod may still finish its calls
    assert int(held_s) > request_s + STOP_S
