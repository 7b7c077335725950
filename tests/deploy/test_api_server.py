"""The manifests of deploy/kubernetes on a real API server: with RBAC, admission and the schemas of
KEDA and the Prometheus operator.
"""

import json
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cluster import (
    IN_NAMESPACE,
    NAMESPACE,
    Cluster,
    needs_api_server,
    running_cluster,
)
from tests.deploy.test_kubernetes import BUILDS, Object, built
from tests.support.export_cli import ROOT
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.long, needs_api_server]

MANIFESTS = ROOT / "deploy" / "kubernetes"
CPU, GPU, SINGLE = BUILDS
RUNNER = "florence-2-mini-runner"
SERVER_SIDE = ("--server-side", "--validate=strict")


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(control_plane: Cluster) -> Iterator[Cluster]:
    """The control plane, empty again after the test."""
    yield control_plane
    for folder in BUILDS:
        files = f"--kustomize={MANIFESTS / folder}"
        control_plane.kubectl("delete", "--ignore-not-found", "--wait=false", files)

    def is_empty() -> bool:
        # a kubelet's part
        control_plane.run("delete", "pods", "--all", "--force", IN_NAMESPACE)
        return control_plane.run("get", "namespace", NAMESPACE).returncode == 1

    wait_until(is_empty, pause_s=0.5)


def apply(cluster: Cluster, folder: Path | str, *options: str) -> None:
    cluster.kubectl("apply", *options, f"--kustomize={MANIFESTS / folder}")


def stored(cluster: Cluster, manifests: Sequence[Object]) -> list[Object]:
    """Return the objects of the server that manifests name."""
    names = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    text = cluster.kubectl("get", "--filename=-", "--output=json", manifest=names)
    return list(json.loads(text)["items"])


def losses(value: Any, stored_value: Any, path: str) -> Iterator[str]:
    """Yield what a manifest says and the stored object does not."""
    if isinstance(value, dict) and isinstance(stored_value, dict):
        for name in value:
            yield from losses(value[name], stored_value.get(name), f"{path}.{name}")
    elif isinstance(value, list) and isinstance(stored_value, list):
        assert len(value) == len(stored_value), path
        for number, item in enumerate(value):
            yield from losses(item, stored_value[number], f"{path}.{number}")
    elif value != stored_value:
        yield f"{path}: {value!r} is {stored_value!r}"


def assert_stored(cluster: Cluster, manifests: Sequence[Object]) -> None:
    for manifest, stored_object in zip(manifests, stored(cluster, manifests), strict=True):
        assert list(losses(manifest, stored_object, manifest["kind"])) == []


@pytest.mark.parametrize("options", [SERVER_SIDE, ()], ids=["server", "client"])
@pytest.mark.parametrize("folder", BUILDS)
def test_second_apply_changes_nothing(
    cluster: Cluster, folder: str, options: tuple[str, ...]
) -> None:
    manifests = built(folder).objects

    def generations() -> list[Any]:
        return [item["metadata"].get("generation") for item in stored(cluster, manifests)]

    apply(cluster, folder, *options)
    assert_stored(cluster, manifests)
    before = generations()
    apply(cluster, folder, *options)
    assert generations() == before
    cluster.kubectl("diff", *options[:1], f"--kustomize={MANIFESTS / folder}")


@pytest.mark.parametrize("folder", BUILDS)
def test_pods_are_admitted_and_placed(cluster: Cluster, folder: str) -> None:
    apply(cluster, folder)
    nodes: dict[str, str] = {}

    def are_placed() -> bool:
        for pod in cluster.objects("pods"):
            if node := pod["spec"].get("nodeName"):
                nodes[pod["metadata"]["name"].rsplit("-", 2)[0]] = node
        return nodes.keys() == built(folder).pods().keys()

    wait_until(are_placed, 60, lambda: cluster.kubectl("get", "events", "--all-namespaces"))
    for name, node in nodes.items():
        assert (node == "cards") == (folder == GPU and name != "gateway")
    for pod in cluster.objects("pods"):
        names = [volume["name"] for volume in pod["spec"]["volumes"]]
        assert not [name for name in names if name.startswith("kube-api-access")]


def test_pods_may_ask_the_server_nothing(cluster: Cluster) -> None:
    apply(cluster, CPU)
    account = f"--as=system:serviceaccount:{NAMESPACE}:default"
    _, *rows = cluster.kubectl("auth", "can-i", "--list", account, IN_NAMESPACE).splitlines()
    resources = {row.split()[0] for row in rows if not row.startswith(" ")}
    assert len(resources) == 3
    assert all(name.startswith("selfsubject") for name in resources)


def refusal(cluster: Cluster, manifest: Object) -> str:
    run = cluster.run("apply", *SERVER_SIDE, "--dry-run=server", "-f-", manifest=manifest)
    assert run.returncode == 1
    return run.stderr


def test_server_refuses_mistakes(cluster: Cluster) -> None:
    apply(cluster, CPU)
    scaler = deepcopy(built(CPU).of_kind("ScaledObject")[RUNNER])
    scaler["spec"]["minReplicaCount"] = "two"
    assert "minReplicaCount" in refusal(cluster, scaler)
    scaler["spec"] = {**scaler["spec"], "minReplicaCount": 2, "minReplicas": 2}
    assert "minReplicas" in refusal(cluster, scaler)
    pod = deepcopy(built(CPU).pods()[RUNNER].deployment["spec"]["template"])
    pod |= {"apiVersion": "v1", "kind": "Pod"}
    pod["metadata"] |= {"name": "other", "namespace": NAMESPACE}
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "violates PodSecurity" in refusal(cluster, pod)


@pytest.mark.parametrize("options", [SERVER_SIDE, ()], ids=["server", "client"])
def test_overlays_replace_each_other(
    cluster: Cluster, options: tuple[str, ...], tmp_path: Path
) -> None:
    """From one pod to runners of their own, to cards, to a new image; the scaler's number stays."""
    overlay = {
        "resources": [os.path.relpath(MANIFESTS / GPU, tmp_path)],
        "images": [{"name": "diptych", "newTag": "next"}],
    }
    (tmp_path / "kustomization.yaml").write_text(json.dumps(overlay))
    for folder in (SINGLE, CPU, GPU, str(tmp_path)):
        apply(cluster, folder, *options)
        assert_stored(cluster, built(folder).objects)
        cluster.kubectl("scale", "--replicas=3", "deployment/gateway", IN_NAMESPACE)
    apply(cluster, tmp_path, *options)
    (deployment,) = stored(cluster, [built(str(tmp_path)).gateway.deployment])
    assert deployment["spec"]["replicas"] == 3


@pytest.mark.parametrize(("is_ready", "statuses"), [(True, [0, 1]), (False, [0, 0])])
def test_drains_leave_ready_pods_alone(
    cluster: Cluster, is_ready: bool, statuses: list[int]
) -> None:
    """One of two may go while both are ready; those that serve nobody hold no node."""
    apply(cluster, CPU)
    cluster.kubectl("scale", "--replicas=2", "deployment/gateway", IN_NAMESPACE)

    def gateways() -> list[str]:
        pods = cluster.objects("pods", "--selector=app.kubernetes.io/component=gateway")
        return [pod["metadata"]["name"] for pod in pods if "nodeName" in pod["spec"]]

    wait_until(lambda: len(gateways()) == 2)
    names = gateways()
    for number, name in enumerate(names, 1):
        cluster.set_running(name, number, is_ready)
    wait_until(lambda: healthy_gateways(cluster) == (2 * is_ready, 2))
    assert [evict(cluster, name) for name in names] == statuses


def healthy_gateways(cluster: Cluster) -> tuple[int, int]:
    """Return how many gateways are ready, of how many, as their budget counts them."""
    budgets = {item["metadata"]["name"]: item["status"] for item in cluster.objects("pdb")}
    return budgets["gateway"]["currentHealthy"], budgets["gateway"]["expectedPods"]


def evict(cluster: Cluster, name: str) -> int:
    """Return kubectl's status."""
    metadata = {"name": name, "namespace": NAMESPACE}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    url = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
    return cluster.run("create", f"--raw={url}", "--filename=-", manifest=eviction).returncode
