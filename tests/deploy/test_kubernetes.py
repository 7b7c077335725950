"""The manifests of deploy/kubernetes, built with the real kubectl: what is in them, and what they
do together.
"""

import re

import jsonschema
import kubernetes_validate
import pytest

from service.environment import read_settings
from tests.support.export_cli import EMBEDDED
from tests.support.haproxy import CONFIGURATION, FRONT, MODELS
from tests.support.kubernetes import (
    BUILDS,
    REPLICATED,
    SINGLE,
    Object,
    Peer,
    built,
    component,
    container,
    environment,
    lets_in,
    model,
    name_of,
    needs_kubectl,
    of_kind,
    pod_labels,
    ports,
    selects,
    sidecar,
    sidecars,
)
from tests.support.kubernetes_resources import RESOURCES

pytestmark = needs_kubectl

# Versions of Kubernetes: the one in base/kustomization.yaml, and the newest published schema.
OLDEST = "1.30"
NEWEST = "1.37"
STOP_S = 20  # time of the processes beside their requests (docs/reliability.md, "Faults")
MIB = 1 << 20
STRANGER = Peer("default", {"app": "other"})


@pytest.fixture(params=BUILDS)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


@pytest.fixture(params=REPLICATED)
def replicated(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


@pytest.fixture
def deployments(objects: tuple[Object, ...]) -> dict[str, Object]:
    return of_kind(objects, "Deployment")


def different_objects() -> list[Object]:
    """Return the objects of all builds, each once."""
    every = [each for folder in BUILDS for each in built(folder)]
    return [each for index, each in enumerate(every) if each not in every[:index]]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_is_what_the_schemas_of_kubernetes_allow(version: str) -> None:
    of_kubernetes = [each for each in different_objects() if each["kind"] not in RESOURCES]
    assert len(of_kubernetes) > 20
    for each in of_kubernetes:
        kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("kind", RESOURCES)
def test_objects_of_other_projects_have_only_fields_that_are_documented(kind: str) -> None:
    of_kind_ = [each for each in different_objects() if each["kind"] == kind]
    assert of_kind_
    for each in of_kind_:
        jsonschema.validate(each, RESOURCES[kind])


def test_everything_lies_in_one_namespace(objects: tuple[Object, ...]) -> None:
    (namespace,) = of_kind(objects, "Namespace")
    assert {each["metadata"].get("namespace", namespace) for each in objects} == {namespace}
    assert len({name_of(each) for each in objects}) == len(objects)


def test_every_embedded_model_has_its_runner(replicated: tuple[Object, ...]) -> None:
    deployments = of_kind(replicated, "Deployment")
    runners = {name: each for name, each in deployments.items() if component(each) != "gateway"}
    assert set(runners) == {f"{model_id}-runner" for model_id in EMBEDDED}
    for name, runner in runners.items():
        assert name == f"{model(runner)}-{component(runner)}"
        assert container(runner)["args"] == ["runner", "$(MODEL)"]
        (given,) = container(runner)["env"]
        assert (
            given["valueFrom"]["fieldRef"]["fieldPath"]
            == "metadata.labels['app.kubernetes.io/instance']"
        )
    assert container(deployments["gateway"])["args"] == ["gateway"]


def test_the_single_overlay_is_one_pod_that_runs_everything() -> None:
    objects = built(SINGLE)
    (deployment,) = of_kind(objects, "Deployment").values()
    assert deployment["spec"]["replicas"] == 1
    assert "args" not in container(deployment)
    assert [sidecar["name"] for sidecar in sidecars(deployment)] == ["front"]
    assert not of_kind(objects, "ScaledObject")
    assert not read_settings(environment(objects, deployment)).runner_urls


def test_a_selector_selects_the_pods_of_its_own_deployment_and_no_others(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for name, deployment in deployments.items():
        spread = [
            each["labelSelector"]
            for each in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        ]
        service = {"matchLabels": of_kind(objects, "Service")[name]["spec"]["selector"]}
        budget = of_kind(objects, "PodDisruptionBudget")[name]["spec"]["selector"]
        assert len(spread) == 2
        for selector in (deployment["spec"]["selector"], service, budget, *spread):
            assert [
                other for other, each in deployments.items() if selects(selector, pod_labels(each))
            ] == [name]


def test_every_port_that_is_named_is_one_of_the_pods(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for name, deployment in deployments.items():
        service = of_kind(objects, "Service")[name]["spec"]
        listens, own_port = (
            (sidecar(deployment, "front"), "gateway")
            if name == "gateway"
            else (container(deployment), "http")
        )
        assert {port["targetPort"] for port in service["ports"]} == {
            port["name"] for port in listens["ports"]
        }
        probes = [value for key, value in container(deployment).items() if key.endswith("Probe")]
        assert len(probes) == 3
        assert {probe["httpGet"]["port"] for probe in probes} == {own_port}
        # Headless: HAProxy sees a runner's pods one by one.
        assert service.get("clusterIP") == (None if name == "gateway" else "None")


def test_prometheus_scrapes_every_pod_as_the_job_of_the_rules(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    (monitor,) = of_kind(objects, "ServiceMonitor").values()
    services = of_kind(objects, "Service")
    for service in services.values():
        labels = service["metadata"]["labels"]
        assert selects(monitor["spec"]["selector"], labels)
        assert labels[monitor["spec"]["jobLabel"]] == "diptych"
    for name in deployments:
        named = [port["name"] for port in services[name]["spec"]["ports"]]
        (endpoint,) = [each for each in monitor["spec"]["endpoints"] if each["port"] in named]
        assert "relabelings" not in endpoint


def test_prometheus_scrapes_haproxy_as_a_job_of_its_own(replicated: tuple[Object, ...]) -> None:
    (monitor,) = of_kind(replicated, "ServiceMonitor").values()
    service = of_kind(replicated, "Service")["haproxy"]["spec"]
    gateway = of_kind(replicated, "Deployment")["gateway"]
    (endpoint,) = [
        each for each in monitor["spec"]["endpoints"] if each["port"] == service["ports"][0]["name"]
    ]
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": "haproxy"}]
    assert selects({"matchLabels": service["selector"]}, pod_labels(gateway))
    assert ports(gateway)[service["ports"][0]["targetPort"]] == service["ports"][0]["port"]


def test_settings_of_every_deployment_are_settings(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for deployment in deployments.values():
        settings = read_settings(environment(objects, deployment))
        assert settings.models == EMBEDDED
        assert {settings.port, settings.grpc_port} >= {
            port["containerPort"] for port in container(deployment)["ports"]
        }


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


def test_haproxy_has_room_for_every_pod_and_for_as_many_that_are_leaving(
    replicated: tuple[Object, ...],
) -> None:
    scalers = of_kind(replicated, "ScaledObject")
    for name, (_, num_servers, *_) in sections().items():
        assert num_servers > scalers[f"{name}-runner"]["spec"]["maxReplicaCount"] * 1.5


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


def test_clients_reach_the_gateway_through_the_shipped_proxy_alone(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    gateway = deployments["gateway"]
    front = sidecar(gateway, "front")
    assert front["restartPolicy"] == "Always"
    (mount,) = front["volumeMounts"]
    assert front["args"] == ["haproxy", "-f", f"{mount['mountPath']}/{FRONT.name}"]
    given = environment(objects, gateway)
    variables = {each["name"]: each["value"] for each in front["env"]}
    assert variables["GATEWAY_PORT"] == given["DIPTYCH_PORT"] == str(ports(gateway)["gateway"])
    assert (
        variables["GATEWAY_GRPC_PORT"]
        == given["DIPTYCH_GRPC_PORT"]
        == str(ports(gateway)["gateway-grpc"])
    )
    for port, is_open in (
        ("http", True),
        ("grpc", True),
        ("gateway", False),
        ("gateway-grpc", False),
    ):
        assert lets_in(objects, gateway, port, STRANGER) == is_open
    text = FRONT.read_text(encoding="utf-8")
    assert all(f"${{{name}-" in text for name in variables)
    assert f'"${{FRONT_ADDRESS-:{ports(gateway)["http"]}}}"' in text
    assert f'"${{FRONT_GRPC_ADDRESS-:{ports(gateway)["grpc"]}}}"' in text


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


def test_pods_are_confined_and_write_only_into_memory(deployments: dict[str, Object]) -> None:
    for deployment in deployments.values():
        pod = deployment["spec"]["template"]["spec"]
        only = container(deployment)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        for each in (only, *sidecars(deployment)):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = [mount for each in (only, *sidecars(deployment)) for mount in each["volumeMounts"]]
        writable = {
            mount["name"]: mount["mountPath"] for mount in mounts if not mount.get("readOnly")
        }
        assert writable == {"memory": "/dev/shm"}
        assert volumes["memory"]["emptyDir"]["medium"] == "Memory"


def test_the_gateways_memory_has_room_for_every_body(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    gateway = deployments["gateway"]
    given = environment(objects, gateway)
    bodies = int(given["DIPTYCH_MAX_PENDING_REQUESTS"]) * int(given["DIPTYCH_MAX_BODY_BYTES"])
    (memory,) = [
        each for each in gateway["spec"]["template"]["spec"]["volumes"] if each["name"] == "memory"
    ]
    assert bodies < mebibytes(memory["emptyDir"]["sizeLimit"]) * MIB
    assert bodies < mebibytes(container(gateway)["resources"]["limits"]["memory"]) * MIB


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_gateways_may_fill_every_runner_that_is_always_there(
    replicated: tuple[Object, ...],
) -> None:
    settings = read_settings(environment(replicated, of_kind(replicated, "Deployment")["gateway"]))
    scalers = of_kind(replicated, "ScaledObject")
    num_gateways = scalers["gateway"]["spec"]["minReplicaCount"]
    for model_id in EMBEDDED:
        slots = (
            scalers[f"{model_id}-runner"]["spec"]["minReplicaCount"]
            * settings.decoder_max_batch_size
        )
        assert num_gateways * settings.max_running_requests >= 1.5 * slots
    assert settings.max_pending_requests >= len(EMBEDDED) * settings.max_running_requests


def test_a_pod_has_time_to_answer_what_it_has_accepted(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for deployment in deployments.values():
        request_s = int(environment(objects, deployment)["DIPTYCH_REQUEST_TIMEOUT_S"])
        before_s = (
            container(deployment)
            .get("lifecycle", {})
            .get("preStop", {})
            .get("sleep", {})
            .get("seconds", 0)
        )
        assert (
            deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            > before_s + request_s + STOP_S
        )


def test_keys_come_from_a_secret_and_reach_the_gateway_alone(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    assert not of_kind(objects, "Secret")
    for name, deployment in deployments.items():
        secrets = [
            each["secret"]
            for each in deployment["spec"]["template"]["spec"]["volumes"]
            if "secret" in each
        ]
        assert [each["secretName"] for each in secrets] == (
            ["diptych-api-keys"] if name == "gateway" else []
        )
        assert ("DIPTYCH_API_KEYS_FILE" in environment(objects, deployment)) == (name == "gateway")
    (mount,) = [
        each for each in container(deployments["gateway"])["volumeMounts"] if each["name"] == "keys"
    ]
    assert (
        environment(objects, deployments["gateway"])["DIPTYCH_API_KEYS_FILE"]
        == f"{mount['mountPath']}/keys"
    )


def test_only_runners_of_the_gpu_overlay_take_a_card_each() -> None:
    for folder in BUILDS:
        for deployment in of_kind(built(folder), "Deployment").values():
            cards = container(deployment)["resources"]["limits"].get("nvidia.com/gpu")
            is_on_card = folder == "overlays/gpu" and component(deployment) != "gateway"
            assert cards == ("1" if is_on_card else None)
            # No second card is taken for a rollout.
            assert (deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0) == is_on_card
    images = {
        folder: {container(each)["image"] for each in of_kind(built(folder), "Deployment").values()}
        for folder in BUILDS
    }
    assert images == {
        "overlays/cpu": {"diptych:cpu"},
        "overlays/gpu": {"diptych:gpu"},
        SINGLE: {"diptych:cpu"},
    }
