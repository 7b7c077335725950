"""The manifests of deploy/kubernetes, built with the real kubectl: what is in them, and what they do together."""

import jsonschema
import kubernetes_validate
import pytest

from service.settings import read_settings
from tests.support.export_cli import EMBEDDED
from tests.support.kubernetes import (
    BUILDS,
    Object,
    built,
    component,
    container,
    environment,
    model,
    name_of,
    needs_kubectl,
    of_kind,
    pod_labels,
    ports,
    selects,
)
from tests.support.kubernetes_resources import RESOURCES

pytestmark = needs_kubectl

OLDEST, NEWEST = "1.30", "1.37"  # of Kubernetes: what base/kustomization.yaml says, and what there is a schema of
STOP_S = 20  # what the processes may take beside their requests (README.md, "Faults")
MIB = 1 << 20


@pytest.fixture(params=BUILDS)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
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


def test_every_embedded_model_has_its_encoder_and_its_decoder(deployments: dict[str, Object]) -> None:
    runners = {name: each for name, each in deployments.items() if component(each) != "gateway"}
    assert set(runners) == {f"{model_id}-{part}" for model_id in EMBEDDED for part in ("encoder", "decoder")}
    for name, runner in runners.items():
        assert name == f"{model(runner)}-{component(runner)}"
        assert container(runner)["args"] == [component(runner), "$(MODEL)"]
        (given,) = container(runner)["env"]
        assert given["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['app.kubernetes.io/instance']"
    assert container(deployments["gateway"])["args"] == ["gateway"]


def test_a_selector_selects_the_pods_of_its_own_deployment_and_no_others(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for name, deployment in deployments.items():
        spread = [each["labelSelector"] for each in deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]]
        service = {"matchLabels": of_kind(objects, "Service")[name]["spec"]["selector"]}
        budget = of_kind(objects, "PodDisruptionBudget")[name]["spec"]["selector"]
        assert len(spread) == 2
        for selector in (deployment["spec"]["selector"], service, budget, *spread):
            assert [other for other, each in deployments.items() if selects(selector, pod_labels(each))] == [name]


def test_every_port_that_is_named_is_one_of_the_pods(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for name, deployment in deployments.items():
        service = of_kind(objects, "Service")[name]["spec"]
        assert {port["targetPort"] for port in service["ports"]} == set(ports(deployment))
        probes = [value for key, value in container(deployment).items() if key.endswith("Probe")]
        assert len(probes) == 3
        assert {probe["httpGet"]["port"] for probe in probes} == {"http"} <= set(ports(deployment))
        assert service.get("clusterIP") == (
            None if name == "gateway" else "None"
        )  # a runner's pods are seen one by one


def test_prometheus_scrapes_every_pod_as_the_job_of_the_rules(objects: tuple[Object, ...]) -> None:
    (monitor,) = of_kind(objects, "ServiceMonitor").values()
    services = of_kind(objects, "Service")
    for service in services.values():
        labels = service["metadata"]["labels"]
        assert selects(monitor["spec"]["selector"], labels)
        assert labels[monitor["spec"]["jobLabel"]] == "diptych"
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= {
            port["name"] for port in service["spec"]["ports"]
        }


def test_settings_of_every_deployment_are_settings(objects: tuple[Object, ...], deployments: dict[str, Object]) -> None:
    for deployment in deployments.values():
        settings = read_settings(environment(objects, deployment))
        assert settings.models == EMBEDDED
        assert {settings.port, settings.grpc_port} >= set(ports(deployment).values())


def test_the_gateway_knows_the_service_of_every_runner(objects: tuple[Object, ...]) -> None:
    given = environment(objects, of_kind(objects, "Deployment")["gateway"])
    services = of_kind(objects, "Service")
    for part in ("encoder", "decoder"):
        urls = dict(pair.split("=") for pair in given[f"DIPTYCH_{part.upper()}_URLS"].split(","))
        assert urls == {model_id: f"http://{model_id}-{part}:3000" for model_id in EMBEDDED}
        for model_id in EMBEDDED:
            assert [port["port"] for port in services[f"{model_id}-{part}"]["spec"]["ports"]] == [3000]


def test_pods_are_confined_and_write_only_into_memory(deployments: dict[str, Object]) -> None:
    for deployment in deployments.values():
        pod, only = deployment["spec"]["template"]["spec"], container(deployment)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert only["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        writable = {mount["name"]: mount["mountPath"] for mount in only["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"memory": "/dev/shm"}
        assert volumes["memory"]["emptyDir"]["medium"] == "Memory"


def test_the_gateways_memory_has_room_for_every_body(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    gateway = deployments["gateway"]
    given = environment(objects, gateway)
    bodies = int(given["DIPTYCH_MAX_PENDING_REQUESTS"]) * int(given["DIPTYCH_MAX_BODY_BYTES"])
    cache = int(given["DIPTYCH_VISION_CACHE_MB"]) * 1_000_000
    (memory,) = [each for each in gateway["spec"]["template"]["spec"]["volumes"] if each["name"] == "memory"]
    assert bodies < mebibytes(memory["emptyDir"]["sizeLimit"]) * MIB
    assert bodies + cache < mebibytes(container(gateway)["resources"]["limits"]["memory"]) * MIB


def mebibytes(quantity: str) -> int:
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_a_pod_has_time_to_answer_what_it_has_accepted(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    for deployment in deployments.values():
        request_s = int(environment(objects, deployment)["DIPTYCH_REQUEST_TIMEOUT_S"])
        before_s = container(deployment).get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > before_s + request_s + STOP_S


def test_keys_come_from_a_secret_and_reach_the_gateway_alone(
    objects: tuple[Object, ...], deployments: dict[str, Object]
) -> None:
    assert not of_kind(objects, "Secret")
    for name, deployment in deployments.items():
        secrets = [each["secret"] for each in deployment["spec"]["template"]["spec"]["volumes"] if "secret" in each]
        assert [each["secretName"] for each in secrets] == (["diptych-api-keys"] if name == "gateway" else [])
        assert ("DIPTYCH_API_KEYS_FILE" in environment(objects, deployment)) == (name == "gateway")
    (mount,) = [each for each in container(deployments["gateway"])["volumeMounts"] if each["name"] == "keys"]
    assert environment(objects, deployments["gateway"])["DIPTYCH_API_KEYS_FILE"] == f"{mount['mountPath']}/keys"


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
    assert images == {"base": {"diptych"}, "overlays/cpu": {"diptych:cpu"}, "overlays/gpu": {"diptych:gpu"}}
