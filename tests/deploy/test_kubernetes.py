"""The manifests of deploy/kubernetes, built with the real kubectl: what is in them, and what they
do together.
"""

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import read_settings
from tests.support.export_cli import EMBEDDED
from tests.support.haproxy import FRONT
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
    needs_kubectl,
    of_kind,
    pod_labels,
    ports,
    selects,
    sidecar,
    sidecars,
)

pytestmark = needs_kubectl

# Versions of Kubernetes: the one in base/kustomization.yaml, and the newest published schema.
OLDEST = "1.30"
NEWEST = "1.37"
STOP_S = 20  # time of the processes beside their requests (docs/reliability.md, "Faults")
MIB = 1 << 20
RESOURCES: dict[str, Object] = yaml.safe_load(
    Path(__file__).with_name("custom_resources.yaml").read_text(encoding="utf-8")
)
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


def test_settings_of_every_deployment_are_settings(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for deployment in deployments.values():
        settings = read_settings(environment(objects, deployment))
        assert settings.models == EMBEDDED
        assert {settings.port, settings.grpc_port} >= {
            port["containerPort"] for port in container(deployment)["ports"]
        }


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
    images = {}
    for folder in BUILDS:
        deployments = of_kind(built(folder), "Deployment").values()
        images[folder] = {container(each)["image"] for each in deployments}
    assert images == {
        "overlays/cpu": {"diptych:cpu"},
        "overlays/gpu": {"diptych:gpu"},
        SINGLE: {"diptych:cpu"},
    }
