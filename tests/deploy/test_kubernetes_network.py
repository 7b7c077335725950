"""Who may connect to whom under the policies of deploy/kubernetes."""

import pytest

from tests.support.kubernetes import (
    REPLICATED,
    Object,
    Peer,
    built,
    component,
    lets_in,
    lets_out,
    needs_kubectl,
    of_kind,
    pod_labels,
)

pytestmark = needs_kubectl

PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
STRANGERS = (
    Peer("diptych", {"app": "other"}),
    Peer(
        "default",
        {"app.kubernetes.io/part-of": "diptych", "app.kubernetes.io/component": "gateway"},
    ),
)
DNS = Peer("kube-system", {"k8s-app": "kube-dns"})


@pytest.fixture(params=REPLICATED)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


def pods(objects: tuple[Object, ...], *components: str) -> list[Object]:
    return [
        each for each in of_kind(objects, "Deployment").values() if component(each) in components
    ]


def peer(deployment: Object) -> Peer:
    return Peer("diptych", pod_labels(deployment))


def test_only_gateway_and_prometheus_reach_a_runner(objects: tuple[Object, ...]) -> None:
    (gateway,) = pods(objects, "gateway")
    runners = pods(objects, "runner")
    assert len(runners) == 2
    for runner in runners:
        assert lets_in(objects, runner, "http", peer(gateway))
        assert lets_in(objects, runner, "http", PROMETHEUS)
        assert not any(
            lets_in(objects, runner, "http", each) for each in (*map(peer, runners), *STRANGERS)
        )
        assert not lets_in(objects, runner, "grpc", peer(gateway))


def test_only_prometheus_reaches_haproxy(objects: tuple[Object, ...]) -> None:
    (gateway,) = pods(objects, "gateway")
    assert lets_in(objects, gateway, "haproxy", PROMETHEUS)
    assert not any(
        lets_in(objects, gateway, "haproxy", each)
        for each in (*map(peer, pods(objects, "runner")), *STRANGERS)
    )


def test_haproxy_reaches_runners_and_dns_and_nobody_else(objects: tuple[Object, ...]) -> None:
    (gateway,) = pods(objects, "gateway")
    assert all(lets_out(objects, gateway, "http", peer(each)) for each in pods(objects, "runner"))
    assert lets_out(objects, gateway, 53, DNS)
    assert not any(
        lets_out(objects, gateway, port, each) for port in ("http", 53, 443) for each in STRANGERS
    )


def test_a_runner_reaches_nobody(objects: tuple[Object, ...]) -> None:
    for runner in pods(objects, "runner"):
        everyone = (DNS, PROMETHEUS, *STRANGERS, *map(peer, pods(objects, "gateway", "runner")))
        assert not any(
            lets_out(objects, runner, port, each) for port in ("http", 53, 443) for each in everyone
        )


def test_a_pod_that_no_policy_names_is_isolated(objects: tuple[Object, ...]) -> None:
    other: Object = {"spec": {"template": {"metadata": {"labels": {"app": "other"}}}}}
    everyone = (DNS, PROMETHEUS, *STRANGERS, *map(peer, pods(objects, "gateway", "runner")))
    assert not any(
        lets_in(objects, other, "http", each) or lets_out(objects, other, 53, each)
        for each in everyone
    )
