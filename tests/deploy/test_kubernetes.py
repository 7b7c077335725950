"""The manifests of deploy/kubernetes, built with the real kubectl: what is in them, who may connect
to whom, and what scales them.
"""

import itertools
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
        self.component = self.labels["app.kubernetes.io/component"]
        self.model = self.labels.get("app.kubernetes.io/instance", "")
        (self.container,) = self.template["containers"]
        sidecars = self.template.get("initContainers", ())
        self.sidecars: dict[str, Object] = {sidecar["name"]: sidecar for sidecar in sidecars}
        self.ports: dict[str, int] = {}
        for container in (self.container, *sidecars):
            ports = container.get("ports", ())
            self.ports |= {port["name"]: port["containerPort"] for port in ports}

    def volume(self, name: str) -> Object:
        return next(volume for volume in self.template["volumes"] if volume["name"] == name)

    def pre_stop_s(self) -> int:
        hook = self.container.get("lifecycle", {}).get("preStop", {})
        return int(hook.get("sleep", {}).get("seconds", 0))


@dataclass(frozen=True, slots=True)
class Build:
    """The objects of an overlay."""

    objects: tuple[Object, ...]

    def of_kind(self, kind: str) -> dict[str, Object]:
        """Return the objects of a kind by their names."""
        objects = [manifest for manifest in self.objects if manifest["kind"] == kind]
        return {manifest["metadata"]["name"]: manifest for manifest in objects}

    def pods(self) -> dict[str, Pods]:
        """Return the pods of all Deployments by name."""
        return {name: Pods(manifest) for name, manifest in self.of_kind("Deployment").items()}

    def service_pods(self) -> dict[str, Pods]:
        """Return the pods that run the service: all but HAProxy's."""
        all_pods = self.pods()
        del all_pods["front"]
        return all_pods

    @property
    def gateway(self) -> Pods:
        return self.pods()["gateway"]

    def environment(self, pods: Pods) -> dict[str, str]:
        """Return the variables that the container has from ConfigMaps."""
        maps = self.of_kind("ConfigMap")
        variables: dict[str, str] = {}
        for source in pods.container.get("envFrom", ()):
            variables |= maps[source["configMapRef"]["name"]]["data"]
        return variables


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


RUNNER = {
    "args": ["runner", "$(MODEL)"],
    "env": ["MODEL: metadata.labels['app.kubernetes.io/instance']"],
}
# The device plugin sets NVIDIA_VISIBLE_DEVICES for runners; a pod's own would override it. No
# second card is taken for a rollout.
DEPLOYMENTS: dict[tuple[str, str], Object] = {
    ("overlays/cpu", "gateway"): {"args": ["gateway"]},
    ("overlays/cpu", "runner"): RUNNER,
    ("overlays/gpu", "gateway"): {
        "args": ["gateway"],
        "image": "diptych:gpu",
        "env": ["NVIDIA_VISIBLE_DEVICES: void"],
    },
    ("overlays/gpu", "runner"): RUNNER
    | {"image": "diptych:gpu", "cards": "1", "surge, unavailable": (0, 1)},
    ("overlays/single", "gateway"): {},
}
USUAL: Object = {"args": None, "env": [], "image": "diptych:cpu", "cards": None}
USUAL |= {"surge, unavailable": (1, 0)}


def environment_lines(container: Object) -> list[str]:
    lines = []
    for variable in container.get("env", ()):
        if variable["name"] in ("MODEL", "NVIDIA_VISIBLE_DEVICES"):
            field = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
            lines.append(f"{variable['name']}: {variable.get('value', field)}")
    return lines


@pytest.mark.parametrize("folder", BUILDS)
def test_deployments(folder: str) -> None:
    all_pods = built(folder).service_pods()
    runners = {f"{model_id}-runner" for model_id in EMBEDDED} if folder in REPLICATED else set()
    assert all_pods.keys() == {"gateway", *runners}
    for name, pods in all_pods.items():
        assert name == (f"{pods.model}-runner" if name in runners else "gateway")
        update = pods.deployment["spec"]["strategy"]["rollingUpdate"]
        facts = {
            "args": pods.container.get("args"),
            "env": environment_lines(pods.container),
            "image": pods.container["image"],
            "cards": pods.container["resources"]["limits"].get("nvidia.com/gpu"),
            "surge, unavailable": (update["maxSurge"], update["maxUnavailable"]),
        }
        assert facts == USUAL | DEPLOYMENTS[folder, pods.component], name


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Return True if a label selector matches labels; an empty one matches all."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for expression in selector.get("matchExpressions", ()):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


SERVICES = {"front": "gateway", "gateway": "gateways"}  # of clients, of HAProxy


def test_selectors_match_their_own_pods(build: Build) -> None:
    """A node is drained of one pod at a time, and of those that are not ready."""
    all_pods = build.pods()
    for name, pods in all_pods.items():
        spread = pods.template["topologySpreadConstraints"]
        selectors = [constraint["labelSelector"] for constraint in spread]
        assert len(selectors) == 2
        budget = dict(build.of_kind("PodDisruptionBudget")[name]["spec"])
        selectors += [
            pods.deployment["spec"]["selector"],
            budget.pop("selector"),
            {"matchLabels": service_of(build, name)["selector"]},
        ]
        for selector in selectors:
            selected = [other for other in all_pods if selects(selector, all_pods[other].labels)]
            assert selected == [name]
        assert budget == {"maxUnavailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow"}


def service_of(build: Build, deployment: str) -> Object:
    spec: Object = build.of_kind("Service")[SERVICES.get(deployment, deployment)]["spec"]
    return spec


def test_named_ports_are_those_of_the_pods(build: Build) -> None:
    for name, pods in build.pods().items():
        service = service_of(build, name)
        targets = {port["targetPort"] for port in service["ports"]}
        assert targets == {port["name"] for port in pods.container["ports"]}
        probes = [value for key, value in pods.container.items() if key.endswith("Probe")]
        action = "tcpSocket" if name == "front" else "httpGet"
        ports = [probe[action]["port"] for probe in probes]
        assert ports == ["rest" if name == "front" else "http"] * 3
        # Headless: HAProxy sees the pods one by one.
        assert service.get("clusterIP") == (None if name == "front" else "None")


def test_prometheus_reads_each_process_once(build: Build) -> None:
    """Through HAProxy it would read any gateway."""
    (monitor,) = build.of_kind("ServiceMonitor").values()
    read_ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    readable = set()
    for name, service in build.of_kind("Service").items():
        if read_ports & {port["name"] for port in service["spec"]["ports"]}:
            readable.add(name)
    sidecars = {"haproxy"} & set(build.of_kind("Service"))
    assert readable == {SERVICES.get(name, name) for name in build.service_pods()} | sidecars


def test_settings_and_times_of_pods_fit(build: Build) -> None:
    for name, pods in build.service_pods().items():
        settings = read_settings(build.environment(pods))
        assert settings.models == EMBEDDED
        ports = {port["containerPort"] for port in pods.container["ports"]}
        assert ports <= {settings.port, settings.grpc_port}
        # until DNS does not name the gateway
        assert pods.pre_stop_s() == (7 if name == "gateway" else 0)
        stop_s = pods.pre_stop_s() + settings.request_timeout_s + STOP_S
        assert pods.template["terminationGracePeriodSeconds"] > stop_s
        probe = pods.container["startupProbe"]
        start_s = probe["periodSeconds"] * probe["failureThreshold"]
        assert pods.deployment["spec"]["progressDeadlineSeconds"] > start_s
    settings = read_settings(build.environment(build.gateway))
    max_mib = settings.max_pending_requests * settings.max_body_bytes / (1 << 20)
    for limit in (
        build.gateway.volume("memory")["emptyDir"]["sizeLimit"],
        build.gateway.container["resources"]["limits"]["memory"],
    ):
        assert max_mib < int(limit[:-2]) * {"Mi": 1, "Gi": 1024}[limit[-2:]]


def test_front_has_the_shipped_configuration(build: Build) -> None:
    front = build.pods()["front"]
    (mount,) = front.container["volumeMounts"]
    assert front.container["args"] == ["haproxy", "-f", f"{mount['mountPath']}/{FRONT.name}"]
    name = front.volume(mount["name"])["configMap"]["name"]
    texts = {file.name: file.read_text(encoding="utf-8") for file in (CONFIGURATION, MODELS, FRONT)}
    assert build.of_kind("ConfigMap")[name]["data"] == texts
    text = texts[FRONT.name]
    variables = {variable["name"]: variable.get("value") for variable in front.container["env"]}
    assert variables["GATEWAYS"] == f"{SERVICES['gateway']}.$(NAMESPACE).svc.cluster.local"
    for variable in variables.keys() - {"NAMESPACE"}:
        assert re.search(rf"\$\{{{variable}[-}}]", text)
    assert f'"${{FRONT_ADDRESS-:{front.ports["rest"]}}}"' in text
    assert f'"${{FRONT_GRPC_ADDRESS-:{front.ports["grpc"]}}}"' in text
    (hard_stop_s,) = re.findall(r"hard-stop-after (\d+)s", text)
    stop_s = int(variables["FRONT_GRACE"].removesuffix("s")) + int(hard_stop_s)
    assert front.template["terminationGracePeriodSeconds"] > stop_s
    request_s = read_settings(build.environment(build.gateway)).request_timeout_s
    timeouts_s = re.findall(r"timeout (?:client|server) (\d+)s", text)
    assert min(map(int, timeouts_s)) > request_s


def test_pods_are_confined(build: Build) -> None:
    (namespace,) = build.of_kind("Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for component, pods in build.pods().items():
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
        assert writable == ({} if component == "front" else {"memory": "/dev/shm"})
        for volume in writable:
            assert pods.volume(volume)["emptyDir"]["medium"] == "Memory"


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


def test_haproxy_is_a_sidecar_for_the_runners(replicated: Build) -> None:
    gateway = replicated.gateway
    haproxy = gateway.sidecars["haproxy"]
    assert haproxy["restartPolicy"] == "Always"  # ready before the gateway, ended after it
    (mount,) = haproxy["volumeMounts"]
    paths = [f"{mount['mountPath']}/{file.name}" for file in (CONFIGURATION, MODELS)]
    assert haproxy["args"][::2] == ["haproxy", *paths]
    assert gateway.volume(mount["name"]) == replicated.pods()["front"].volume("haproxy")
    variables = {variable["name"]: variable.get("value") for variable in haproxy["env"]}
    assert variables["RUNNERS_DOMAIN"] == "$(NAMESPACE).svc.cluster.local"
    assert variables["STATUS_ADDRESS"] == f"*:{gateway.ports['haproxy']}"
    models = MODELS.read_text(encoding="utf-8")
    # of each model: the port that the gateway calls, host and port of the runners
    sections = re.findall(
        r"^listen (\S+)\n    bind 127\.0\.0\.1:(\d+)\n.*\n    server-template runner \d+"
        r' "(\S+):(\d+)"$',
        models,
        re.MULTILINE,
    )
    urls = replicated.environment(gateway)["DIPTYCH_RUNNER_URLS"].split(",")
    assert urls == [f"{name}=http://127.0.0.1:{port}" for name, port, *_ in sections]
    assert {name for name, *_ in sections} == set(EMBEDDED)
    for name, _, host, port in sections:
        assert host == f"{name}-runner.${{RUNNERS_DOMAIN}}"
        service = replicated.of_kind("Service")[f"{name}-runner"]["spec"]
        assert [service_port["port"] for service_port in service["ports"]] == [int(port)]
    request_s = read_settings(replicated.environment(gateway)).request_timeout_s
    timeouts_s = re.findall(r"timeout (?:client|server) (\d+)s", CONFIGURATION.read_text("utf-8"))
    assert min(map(int, timeouts_s)) > request_s
    (obsolete_s,) = re.findall(r"hold obsolete (\d+)s", models)
    # an address is kept while its pod may still finish its calls
    assert int(obsolete_s) > request_s + STOP_S


# Peers of other projects.
OTHERS: dict[str, Object] = {
    "prometheus": {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
    },
    "dns": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}},
    "anyone": {},
}


def names_of_peer(build: Build, peer: Object) -> set[str]:
    for name, known in OTHERS.items():
        if peer == known:
            return {name}
    assert peer.keys() == {"podSelector"}  # in our namespace
    selected = [pods for pods in build.pods().values() if selects(peer["podSelector"], pods.labels)]
    return {pods.component for pods in selected}


def connections(build: Build) -> set[tuple[str, str, str | int, str]]:
    """Return pods, direction, port and peer of all connections that the policies permit."""
    permitted = set()
    for policy in build.of_kind("NetworkPolicy").values():
        spec = policy["spec"]
        for direction, side in (("ingress", "from"), ("egress", "to")):
            for rule in spec.get(direction, ()):
                for port, peer in itertools.product(rule["ports"], rule.get(side, [{}])):
                    for name in names_of_peer(build, {"podSelector": spec["podSelector"]}):
                        for other in names_of_peer(build, peer):
                            permitted.add((name, direction, port["port"], other))
    return permitted


AT_THE_FRONT = {
    ("front", "ingress", "rest", "anyone"),
    ("front", "ingress", "grpc", "anyone"),
    ("front", "egress", "http", "gateway"),
    ("front", "egress", "grpc", "gateway"),
    ("front", "egress", 53, "dns"),
    ("gateway", "ingress", "http", "front"),
    ("gateway", "ingress", "grpc", "front"),
    ("gateway", "ingress", "http", "prometheus"),
}
AMONG_PODS = {
    ("gateway", "ingress", "haproxy", "prometheus"),
    ("gateway", "egress", "http", "runner"),
    ("gateway", "egress", 53, "dns"),
    ("runner", "ingress", "http", "gateway"),
    ("runner", "ingress", "http", "prometheus"),
}


@pytest.mark.parametrize("folder", BUILDS)
def test_policies_permit_known_connections_alone(folder: str) -> None:
    denied = built(folder).of_kind("NetworkPolicy")["default-deny"]["spec"]
    assert denied == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    among_pods = AMONG_PODS if folder in REPLICATED else set()
    assert connections(built(folder)) == AT_THE_FRONT | among_pods


def test_every_deployment_is_scaled_by_one_object(replicated: Build) -> None:
    scalers = replicated.of_kind("ScaledObject").values()
    targets = [scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers]
    assert sorted(targets) == sorted(replicated.service_pods())
    for pods in replicated.service_pods().values():
        assert "replicas" not in pods.deployment["spec"]
    for scaler in scalers:
        assert 1 <= scaler["spec"]["minReplicaCount"] < scaler["spec"]["maxReplicaCount"]


def queries(scaler: Object) -> list[str]:
    triggers = scaler["spec"]["triggers"]
    return [trigger["metadata"]["query"] for trigger in triggers if trigger["type"] == "prometheus"]


@needs_prometheus
def test_a_runner_is_scaled_by_metrics_of_its_model(replicated: Build) -> None:
    scalers = replicated.of_kind("ScaledObject")
    assert not queries(scalers.pop("gateway"))
    for name, scaler in scalers.items():
        texts = queries(scaler)
        text = " ".join(texts)
        metrics = set(re.findall(r"diptych_\w+", text))
        assert metrics == {"diptych_slots_taken", "diptych_queue_depth"} <= declared_metrics()
        assert set(re.findall(r'model="([^"]*)"', text)) == {replicated.pods()[name].model}
        stages = "|".join(re.findall(r'stage=~?"([^"]*)"', text))
        assert sorted(stages.split("|")) == ["admission", "decode", "encode"]
        for query in texts:
            command = ["promtool", "--experimental", "promql", "format", query]
            run = subprocess.run(command, capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
