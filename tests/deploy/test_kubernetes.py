"""The manifests of deploy/kubernetes, built with the real kubectl: what is in them, who may connect
to whom, and what scales them.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import jsonschema
import kubernetes_validate
import pytest
import yaml

from service.settings import read_settings
from tests.support.export_cli import EMBEDDED, ROOT
from tests.support.haproxy import CONFIGURATION, FRONT, MODELS
from tests.support.monitoring import declared_metrics, needs_prometheus

pytestmark = pytest.mark.skipif(
    shutil.which("kubectl") is None,
    reason="no kubectl here: deploy/kubernetes is NOT tested (apt-get install kubernetes-client)",
)

Object = dict[str, Any]
REPLICATED = ("overlays/cpu", "overlays/gpu")  # separate pods for runners
BUILDS = (*REPLICATED, "overlays/single")
# Versions of Kubernetes: the one in base/kustomization.yaml, and the newest published schema.
VERSIONS = ("1.30", "1.37")
STOP_S = 20  # time of the processes beside their requests (docs/reliability.md, "Faults")
MIB = 1 << 20
RESOURCES: dict[str, Object] = yaml.safe_load(
    Path(__file__).with_name("custom_resources.yaml").read_text(encoding="utf-8")
)


class Pods:
    """The pods of a Deployment; `container` is the one that is not a sidecar."""

    def __init__(self, deployment: Object) -> None:
        pod = deployment["spec"]["template"]
        self.deployment = deployment
        self.template: Object = pod["spec"]
        self.labels: Mapping[str, str] = pod["metadata"]["labels"]
        self.component = self.labels.get("app.kubernetes.io/component", "")
        self.model = self.labels.get("app.kubernetes.io/instance", "")
        (self.container,) = self.template["containers"]
        sidecars = self.template.get("initContainers", ())
        self.sidecars: dict[str, Object] = {sidecar["name"]: sidecar for sidecar in sidecars}
        self.ports: dict[str, int] = {}
        for container in (self.container, *sidecars):
            ports = container.get("ports", ())
            self.ports |= {port["name"]: port["containerPort"] for port in ports}


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod at the other end of a connection."""

    namespace: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Build:
    """The objects of an overlay."""

    objects: tuple[Object, ...]

    def of_kind(self, kind: str) -> dict[str, Object]:
        """Return the objects of a kind by their names."""
        objects = [manifest for manifest in self.objects if manifest["kind"] == kind]
        return {manifest["metadata"]["name"]: manifest for manifest in objects}

    def pods(self, *components: str) -> dict[str, Pods]:
        """Return the pods of all Deployments, or of some components, by name."""
        all_pods = {name: Pods(manifest) for name, manifest in self.of_kind("Deployment").items()}
        if not components:
            return all_pods
        return {name: pods for name, pods in all_pods.items() if pods.component in components}

    @property
    def gateway(self) -> Pods:
        return self.pods()["gateway"]

    def environment(self, pods: Pods) -> dict[str, str]:
        """Return the variables that the container has from ConfigMaps."""
        maps = self.of_kind("ConfigMap")
        variables: dict[str, str] = {}
        for source in pods.container["envFrom"]:
            variables |= maps[source["configMapRef"]["name"]]["data"]
        return variables

    def admits(
        self, pods: Pods, direction: Literal["Ingress", "Egress"], port: str | int, peer: Peer
    ) -> bool:
        """Return True if the policies let `peer` connect to a port of the pods, or these to it; the
        pods are in the namespace diptych.
        """
        rules: list[Object] = []
        is_restricted = False
        for policy in self.of_kind("NetworkPolicy").values():
            spec = policy["spec"]
            if direction in spec["policyTypes"] and selects(spec["podSelector"], pods.labels):
                is_restricted = True
                rules += spec.get(direction.lower(), ())
        side = {"Ingress": "from", "Egress": "to"}[direction]
        return not is_restricted or any(_allows(rule, side, port, peer) for rule in rules)


def _allows(rule: Object, side: str, port: str | int, peer: Peer) -> bool:
    if "ports" in rule and port not in [allowed["port"] for allowed in rule["ports"]]:
        return False
    return side not in rule or any(_is_peer(allowed, peer) for allowed in rule[side])


def _is_peer(rule: Object, peer: Peer) -> bool:
    """Return True if a rule's peer is this one; without a namespace selector it is in the policy's
    namespace.
    """
    assert rule.keys() <= {"podSelector", "namespaceSelector"}
    is_in_namespace = rule.get("namespaceSelector") == {} or peer.namespace == "diptych"
    return is_in_namespace and selects(rule.get("podSelector", {}), peer.labels)


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Return True if a label selector matches labels; an empty one matches all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


@cache
def built(folder: str) -> Build:
    command = ["kubectl", "kustomize", str(ROOT / "deploy" / "kubernetes" / folder)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Build(tuple(yaml.safe_load_all(run.stdout)))


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest) -> Build:
    return built(str(request.param))


@pytest.fixture(params=REPLICATED)
def replicated(request: pytest.FixtureRequest) -> Build:
    return built(str(request.param))


def test_objects_fit_their_schemas(build: Build) -> None:
    for manifest in build.objects:
        if schema := RESOURCES.get(manifest["kind"]):  # of another project
            jsonschema.validate(manifest, schema)
            continue
        for version in VERSIONS:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_model_has_its_runner(replicated: Build) -> None:
    runners = replicated.pods("runner")
    assert set(runners) == {f"{model_id}-runner" for model_id in EMBEDDED}
    for name, runner in runners.items():
        assert name == f"{runner.model}-runner"
        assert runner.container["args"] == ["runner", "$(MODEL)"]
        (variable,) = runner.container["env"]
        field = variable["valueFrom"]["fieldRef"]["fieldPath"]
        assert field == "metadata.labels['app.kubernetes.io/instance']"
    assert replicated.gateway.container["args"] == ["gateway"]


def test_selectors_match_their_own_pods(build: Build) -> None:
    all_pods = build.pods()
    for name, pods in all_pods.items():
        spread = [
            constraint["labelSelector"] for constraint in pods.template["topologySpreadConstraints"]
        ]
        service = {"matchLabels": build.of_kind("Service")[name]["spec"]["selector"]}
        budget = build.of_kind("PodDisruptionBudget")[name]["spec"]["selector"]
        assert len(spread) == 2
        for selector in (pods.deployment["spec"]["selector"], service, budget, *spread):
            selected = [other for other in all_pods if selects(selector, all_pods[other].labels)]
            assert selected == [name]


def test_named_ports_are_those_of_the_pods(build: Build) -> None:
    for name, pods in build.pods().items():
        is_gateway = name == "gateway"
        listening = pods.sidecars["front"] if is_gateway else pods.container
        service = build.of_kind("Service")[name]["spec"]
        targets = {port["targetPort"] for port in service["ports"]}
        assert targets == {port["name"] for port in listening["ports"]}
        probes = [value for key, value in pods.container.items() if key.endswith("Probe")]
        assert len(probes) == 3
        assert {probe["httpGet"]["port"] for probe in probes} == {
            "gateway" if is_gateway else "http"
        }
        # Headless: HAProxy sees a runner's pods one by one.
        assert service.get("clusterIP") == (None if is_gateway else "None")


def test_slow_starts_are_no_failed_rollouts(build: Build) -> None:
    for pods in build.pods().values():
        probe = pods.container["startupProbe"]
        start_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert pods.deployment["spec"]["progressDeadlineSeconds"] > start_s


def test_settings_of_pods_are_valid(build: Build) -> None:
    for pods in build.pods().values():
        settings = read_settings(build.environment(pods))
        assert settings.models == EMBEDDED
        ports = {port["containerPort"] for port in pods.container["ports"]}
        assert ports <= {settings.port, settings.grpc_port}
        stop_s = pre_stop_s(pods) + settings.request_timeout_s + STOP_S
        assert pods.template["terminationGracePeriodSeconds"] > stop_s


def pre_stop_s(pods: Pods) -> int:
    hook = pods.container.get("lifecycle", {}).get("preStop", {})
    return int(hook.get("sleep", {}).get("seconds", 0))


def test_clients_reach_the_proxy_alone(build: Build) -> None:
    gateway = build.gateway
    front = gateway.sidecars["front"]
    assert front["restartPolicy"] == "Always"
    (mount,) = front["volumeMounts"]
    assert front["args"] == ["haproxy", "-f", f"{mount['mountPath']}/{FRONT.name}"]
    settings = build.environment(gateway)
    variables = {variable["name"]: variable["value"] for variable in front["env"]}
    ports = gateway.ports
    assert variables["GATEWAY_PORT"] == settings["DIPTYCH_PORT"] == str(ports["gateway"])
    grpc_port = variables["GATEWAY_GRPC_PORT"]
    assert grpc_port == settings["DIPTYCH_GRPC_PORT"] == str(ports["gateway-grpc"])
    assert int(variables["FRONT_GRACE"].removesuffix("s")) < pre_stop_s(gateway)
    stranger = Peer("default", {"app": "other"})
    admitted = {port for port in ports if build.admits(gateway, "Ingress", port, stranger)}
    assert admitted == {"http", "grpc"}
    text = FRONT.read_text(encoding="utf-8")
    assert all(f"${{{name}-" in text for name in variables)
    assert f'"${{FRONT_ADDRESS-:{ports["http"]}}}"' in text
    assert f'"${{FRONT_GRPC_ADDRESS-:{ports["grpc"]}}}"' in text


def test_pods_are_confined(build: Build) -> None:
    for pods in build.pods().values():
        template = pods.template
        assert template["securityContext"]["runAsNonRoot"]
        assert template["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["automountServiceAccountToken"] is False
        assert template["enableServiceLinks"] is False
        writable = {}
        for container in (pods.container, *pods.sidecars.values()):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for mount in container["volumeMounts"]:
                if not mount.get("readOnly"):
                    writable[mount["name"]] = mount["mountPath"]
        assert writable == {"memory": "/dev/shm"}
        assert volume_of(pods, "memory")["emptyDir"]["medium"] == "Memory"


def volume_of(pods: Pods, name: str) -> Object:
    return next(volume for volume in pods.template["volumes"] if volume["name"] == name)


def test_memory_has_room_for_every_body(build: Build) -> None:
    settings = read_settings(build.environment(build.gateway))
    num_bytes = settings.max_pending_requests * settings.max_body_bytes
    limits = (
        volume_of(build.gateway, "memory")["emptyDir"]["sizeLimit"],
        build.gateway.container["resources"]["limits"]["memory"],
    )
    for limit in limits:
        assert num_bytes < int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]] * MIB


def test_keys_reach_the_gateway_alone(build: Build) -> None:
    assert not build.of_kind("Secret")
    for name, pods in build.pods().items():
        is_gateway = name == "gateway"
        volumes = pods.template["volumes"]
        secrets = [volume["secret"]["secretName"] for volume in volumes if "secret" in volume]
        assert secrets == (["diptych-api-keys"] if is_gateway else [])
        assert ("DIPTYCH_API_KEYS_FILE" in build.environment(pods)) == is_gateway
    mounts = {mount["name"]: mount for mount in build.gateway.container["volumeMounts"]}
    file = build.environment(build.gateway)["DIPTYCH_API_KEYS_FILE"]
    assert file == f"{mounts['keys']['mountPath']}/keys"


@pytest.mark.parametrize("folder", BUILDS)
def test_runners_of_the_gpu_overlay_have_a_card(folder: str) -> None:
    image = "diptych:gpu" if folder == "overlays/gpu" else "diptych:cpu"
    for pods in built(folder).pods().values():
        is_on_card = folder == "overlays/gpu" and pods.component != "gateway"
        cards = pods.container["resources"]["limits"].get("nvidia.com/gpu")
        assert cards == ("1" if is_on_card else None)
        # The device plugin sets this variable for runners; a pod's own would override it.
        variables = {variable["name"]: variable for variable in pods.container["env"]}
        is_hidden = folder == "overlays/gpu" and not is_on_card
        hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
        assert variables.get(hidden["name"]) == (hidden if is_hidden else None)
        # No second card is taken for a rollout.
        max_surge = pods.deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        assert (max_surge == 0) == is_on_card
        assert pods.container["image"] == image


def sections() -> dict[str, tuple[str, str, int]]:
    """Return the bound port, and the servers' host and port, of each model of models.cfg."""
    listening = re.findall(
        r"^listen (\S+)\n    bind 127\.0\.0\.1:(\d+)\n.*\n    server-template runner \d+"
        r' "(\S+):(\d+)"$',
        MODELS.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return {name: (port, host, int(target)) for name, port, host, target in listening}


def test_gateway_haproxy_and_services_agree(replicated: Build) -> None:
    pairs = replicated.environment(replicated.gateway)["DIPTYCH_RUNNER_URLS"].split(",")
    urls = dict(pair.split("=") for pair in pairs)
    assert urls == {name: f"http://127.0.0.1:{port}" for name, (port, *_) in sections().items()}
    assert set(urls) == set(EMBEDDED)
    for name, (_, host, port) in sections().items():
        assert host == f"{name}-runner.${{RUNNERS_DOMAIN}}"
        service = replicated.of_kind("Service")[f"{name}-runner"]
        assert [service_port["port"] for service_port in service["spec"]["ports"]] == [port]


def test_haproxy_is_a_sidecar(replicated: Build) -> None:
    gateway = replicated.gateway
    haproxy = gateway.sidecars["haproxy"]
    assert haproxy["restartPolicy"] == "Always"  # ready before the gateway, ended after it
    (mount,) = haproxy["volumeMounts"]
    paths = [f"{mount['mountPath']}/{file.name}" for file in (CONFIGURATION, MODELS)]
    assert haproxy["args"][::2] == ["haproxy", *paths]
    name = volume_of(gateway, mount["name"])["configMap"]["name"]
    texts = {file.name: file.read_text(encoding="utf-8") for file in (CONFIGURATION, MODELS, FRONT)}
    assert replicated.of_kind("ConfigMap")[name]["data"] == texts
    variables = {variable["name"]: variable.get("value") for variable in haproxy["env"]}
    assert variables["RUNNERS_DOMAIN"] == "$(NAMESPACE).svc.cluster.local"
    assert variables["STATUS_ADDRESS"] == f"*:{gateway.ports['haproxy']}"


def test_haproxy_waits_longer_than_a_request(replicated: Build) -> None:
    request_s = read_settings(replicated.environment(replicated.gateway)).request_timeout_s
    text = CONFIGURATION.read_text(encoding="utf-8")
    timeouts = dict(re.findall(r"timeout (client|server) (\d+)s", text))
    assert min(int(timeouts["client"]), int(timeouts["server"])) > request_s
    (obsolete_s,) = re.findall(r"hold obsolete (\d+)s", MODELS.read_text(encoding="utf-8"))
    # an address is kept while its pod may still finish its calls
    assert int(obsolete_s) > request_s + STOP_S


DNS = Peer("kube-system", {"k8s-app": "kube-dns"})
PROMETHEUS = Peer("monitoring", {"app.kubernetes.io/name": "prometheus"})
FALSE_GATEWAY = {"app.kubernetes.io/part-of": "diptych", "app.kubernetes.io/component": "gateway"}
STRANGERS = (Peer("diptych", {"app": "other"}), Peer("default", FALSE_GATEWAY))


def test_policies_admit_known_peers_alone(replicated: Build) -> None:
    gateway = replicated.gateway
    runners = list(replicated.pods("runner").values())
    assert len(runners) == 2
    gateway_peer = Peer("diptych", gateway.labels)
    runner_peers = [Peer("diptych", runner.labels) for runner in runners]
    peers = (gateway_peer, *runner_peers, PROMETHEUS, DNS, *STRANGERS)

    def admitted(
        pods: Pods, direction: Literal["Ingress", "Egress"], port: str | int
    ) -> list[Peer]:
        return [peer for peer in peers if replicated.admits(pods, direction, port, peer)]

    for runner in runners:
        assert admitted(runner, "Ingress", "http") == [gateway_peer, PROMETHEUS]
        assert admitted(runner, "Ingress", "grpc") == []
        assert not any(admitted(runner, "Egress", port) for port in ("http", 53, 443))
    assert admitted(gateway, "Ingress", "haproxy") == [PROMETHEUS]
    assert admitted(gateway, "Egress", "http") == runner_peers
    assert DNS in admitted(gateway, "Egress", 53)
    for port in ("http", 53, 443):
        assert not [peer for peer in admitted(gateway, "Egress", port) if peer in STRANGERS]
    pod = {"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [{}]}}
    unknown = Pods({"spec": {"template": pod}})
    assert admitted(unknown, "Ingress", "http") == admitted(unknown, "Egress", 53) == []


def queries(scaler: Object) -> list[str]:
    triggers = scaler["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]


def test_every_deployment_is_scaled_by_one_object(replicated: Build) -> None:
    scalers = replicated.of_kind("ScaledObject").values()
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    assert sorted(targets) == sorted(replicated.pods())
    for pods in replicated.pods().values():
        assert "replicas" not in pods.deployment["spec"]
    for scaler in scalers:
        assert 1 <= scaler["spec"]["minReplicaCount"] < scaler["spec"]["maxReplicaCount"]


def test_a_runner_is_scaled_by_metrics_of_its_model(replicated: Build) -> None:
    scalers = replicated.of_kind("ScaledObject")
    assert not queries(scalers["gateway"])
    for name, runner in replicated.pods("runner").items():
        text = " ".join(queries(scalers[name]))
        metrics = set(re.findall(r"diptych_\w+", text))
        assert metrics == {"diptych_slots_taken", "diptych_queue_depth"} <= declared_metrics()
        assert set(re.findall(r'model="([^"]*)"', text)) == {runner.model}
        stages = "|".join(re.findall(r'stage=~?"([^"]*)"', text))
        assert sorted(stages.split("|")) == ["admission", "decode", "encode"]


@needs_prometheus
def test_prometheus_accepts_the_queries(replicated: Build) -> None:
    scalers = replicated.of_kind("ScaledObject").values()
    texts = list(chain.from_iterable(map(queries, scalers)))
    assert texts
    for query in texts:
        command = ["promtool", "--experimental", "promql", "format", query]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
