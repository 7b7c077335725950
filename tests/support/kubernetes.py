"""The objects that kustomize makes of deploy/kubernetes, and how Kubernetes reads their labels and
policies.
"""

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml

from tests.support.export_cli import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
REPLICATED = ("overlays/cpu", "overlays/gpu")  # separate pods for runners
SINGLE = "overlays/single"
BUILDS = (*REPLICATED, SINGLE)
HAS_KUBECTL = shutil.which("kubectl") is not None
MISSING_KUBECTL = (
    "no kubectl here: deploy/kubernetes is NOT tested (apt-get install kubernetes-client)"
)
needs_kubectl = pytest.mark.skipif(not HAS_KUBECTL, reason=MISSING_KUBECTL)

Object = dict[str, Any]
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Peer:
    """A pod at the other end of a connection."""

    namespace: str
    labels: Labels


@cache
def built(folder: str) -> tuple[Object, ...]:
    """Return every object of an overlay, built with the real kubectl."""
    run = subprocess.run(
        ["kubectl", "kustomize", str(FOLDER / folder)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return tuple(yaml.safe_load_all(run.stdout))


def of_kind(objects: tuple[Object, ...], kind: str) -> dict[str, Object]:
    """Return the objects of a kind by their names."""
    return {each["metadata"]["name"]: each for each in objects if each["kind"] == kind}


def pod_labels(deployment: Object) -> Labels:
    """Return the labels of a Deployment's pods."""
    labels: Labels = deployment["spec"]["template"]["metadata"]["labels"]
    return labels


def container(deployment: Object) -> Object:
    """Return the one container of a Deployment's pods that is not a sidecar."""
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


def sidecars(deployment: Object) -> tuple[Object, ...]:
    """Return the sidecars of a Deployment's pods."""
    return tuple(deployment["spec"]["template"]["spec"].get("initContainers", ()))


def sidecar(deployment: Object, name: str) -> Object:
    """Return a sidecar of a Deployment's pods."""
    return next(each for each in sidecars(deployment) if each["name"] == name)


def ports(deployment: Object) -> dict[str, int]:
    """Return the ports of a Deployment's pods by their names."""
    containers = (container(deployment), *sidecars(deployment))
    return {port["name"]: port["containerPort"] for each in containers for port in each["ports"]}


def component(deployment: Object) -> str:
    """Return gateway or runner."""
    return pod_labels(deployment)["app.kubernetes.io/component"]


def model(deployment: Object) -> str:
    """Return the model of a runner."""
    return pod_labels(deployment)["app.kubernetes.io/instance"]


def selects(selector: Object, labels: Labels) -> bool:
    """Return True if a label selector matches labels.

    An empty one matches all (Kubernetes' LabelSelector).
    """
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(_holds(each, labels) for each in selector.get("matchExpressions", ()))


def _holds(expression: Object, labels: Labels) -> bool:
    assert expression["operator"] == "In"
    return labels.get(expression["key"]) in expression["values"]


def environment(objects: tuple[Object, ...], deployment: Object) -> dict[str, str]:
    """Return the variables that a Deployment's container has from ConfigMaps."""
    maps = of_kind(objects, "ConfigMap")
    names = [source["configMapRef"]["name"] for source in container(deployment)["envFrom"]]
    return {name: value for each in names for name, value in maps[each]["data"].items()}


def lets_in(objects: tuple[Object, ...], deployment: Object, port: str, peer: Peer) -> bool:
    """Return True if the policies let `peer` connect to a port of the pods, which are in the
    namespace diptych.
    """
    policies = [
        each
        for each in of_kind(objects, "NetworkPolicy").values()
        if _is_about(each, "Ingress", deployment)
    ]
    rules = [rule for policy in policies for rule in policy["spec"].get("ingress", ())]
    return not policies or any(_allows(rule, "from", port, peer) for rule in rules)


def lets_out(objects: tuple[Object, ...], deployment: Object, port: str | int, peer: Peer) -> bool:
    """Return True if the policies let the pods connect to a port of `peer`."""
    policies = [
        each
        for each in of_kind(objects, "NetworkPolicy").values()
        if _is_about(each, "Egress", deployment)
    ]
    rules = [rule for policy in policies for rule in policy["spec"].get("egress", ())]
    return not policies or any(_allows(rule, "to", port, peer) for rule in rules)


def _is_about(policy: Object, direction: str, deployment: Object) -> bool:
    return direction in policy["spec"]["policyTypes"] and selects(
        policy["spec"]["podSelector"], pod_labels(deployment)
    )


def _allows(rule: Object, side: str, port: str | int, peer: Peer) -> bool:
    right_port = "ports" not in rule or port in [each["port"] for each in rule["ports"]]
    return right_port and (side not in rule or any(_is_peer(each, peer) for each in rule[side]))


def _is_peer(rule: Object, peer: Peer) -> bool:
    """Return True if a rule's peer is this one; without a namespace selector it is in the policy's
    namespace.
    """
    assert rule.keys() <= {"podSelector", "namespaceSelector"}
    right_namespace = rule.get("namespaceSelector") == {} or peer.namespace == "diptych"
    return right_namespace and selects(rule.get("podSelector", {}), peer.labels)
