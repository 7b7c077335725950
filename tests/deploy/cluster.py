"""A real control plane of Kubernetes on this host: etcd, API server, controllers and scheduler.

It has nodes without a kubelet: nothing runs their pods, unless a test does. `KUBEBUILDER_ASSETS`
names the folder of the programs, and of the CustomResourceDefinitions (`*.yaml`) that KEDA and the
Prometheus operator publish.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.export_cli import ROOT
from tests.support.running_service import free_port
from tests.support.waiting import running_program, wait_until

ASSETS = Path(os.environ.get("KUBEBUILDER_ASSETS", ROOT / "build" / "kubernetes"))
SEARCHED = f"{ASSETS}{os.pathsep}{os.environ['PATH']}"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
DEFINITIONS = ("keda.sh_scaledobjects.yaml", "monitoring.coreos.com_servicemonitors.yaml")
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=SEARCHED)]
MISSING += [name for name in DEFINITIONS if not (ASSETS / name).exists()]
needs_api_server = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no {', '.join(MISSING)} in KUBEBUILDER_ASSETS: a real Kubernetes is NOT tested",
)
TOKEN = "administrator"
NAMESPACE = "diptych"
IN_NAMESPACE = f"--namespace={NAMESPACE}"
CARD = "nvidia.com/gpu"

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running control plane, and its administrator."""

    folder: Path

    def run(
        self, *arguments: str, manifest: Object | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = ["kubectl", f"--kubeconfig={self.folder / 'kubeconfig'}", *arguments]
        text = None if manifest is None else json.dumps(manifest)
        return subprocess.run(command, input=text, capture_output=True, text=True)

    def kubectl(self, *arguments: str, manifest: Object | None = None) -> str:
        """Return what kubectl writes; fail if it fails or the server warns."""
        run = self.run(*arguments, manifest=manifest)
        assert run.returncode == 0, run.stderr
        assert "Warning:" not in run.stderr, run.stderr
        return run.stdout

    def objects(self, kinds: str, *arguments: str) -> list[Object]:
        command = ["get", kinds, IN_NAMESPACE, "--output=json", *arguments]
        return list(json.loads(self.kubectl(*command))["items"])

    def set_running(self, pod: str, number: int, is_ready: bool = True) -> None:
        """Report, as a kubelet does, that a pod runs."""
        address = f"10.1.0.{number}"
        status = {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": str(is_ready)}],
        }
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", pod, IN_NAMESPACE, "--subresource=status", f"--patch={patch}")

    def add_node(self, name: str, num_cards: int) -> None:
        """Add a node that is ready for ever; one with cards is for pods that tolerate them."""
        resources = {"cpu": "64", "memory": "256Gi", "pods": "110", CARD: str(num_cards)}
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"taints": [{"key": CARD, "effect": "NoSchedule"}] if num_cards else []},
            "status": {
                "capacity": resources,
                "allocatable": resources,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        self.kubectl("create", "--filename=-", manifest=node)


def kubeconfig(url: str) -> Object:
    server = {"server": url, "certificate-authority": "ca.pem"}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": server}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
    }


@contextmanager
def running_cluster(folder: Path) -> Iterator[Cluster]:
    """Run a control plane with RBAC, default admission and three nodes, one of which has cards."""
    certificates = trustme.CA()
    certificates.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = certificates.issue_cert("127.0.0.1")
    server.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    server.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "tokens").write_text(f"{TOKEN},administrator,1,system:masters\n")
    etcd, peer, port = (free_port() for _ in range(3))
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig(f"https://127.0.0.1:{port}")))
    cluster = Cluster(folder)

    def is_ready() -> bool:
        return cluster.run("get", "--raw=/readyz").returncode == 0

    def has_account() -> bool:
        return cluster.run("get", "serviceaccount", "default").returncode == 0

    programs = [
        ("etcd", etcd_options(folder, etcd, peer), is_started),
        ("kube-apiserver", server_options(folder, etcd, port), is_ready),
        ("kube-controller-manager", controller_options(folder), has_account),
        ("kube-scheduler", client_options(folder), is_started),
    ]
    with ExitStack() as stack:
        for name, options, is_running in programs:
            command = [str(shutil.which(name, path=SEARCHED)), *options]
            log = folder / f"{name}.log"
            stack.enter_context(running_program(command, is_running, log))
        files = [f"--filename={ASSETS / name}" for name in DEFINITIONS]
        cluster.kubectl("apply", "--server-side", *files)
        wait = ["wait", "--for=condition=Established", "crd", "--all"]
        wait_until(lambda: cluster.run(*wait).returncode == 0)  # fails for one that is new
        for name, num_cards in (("first", 0), ("second", 0), ("cards", 8)):
            cluster.add_node(name, num_cards)
        yield cluster


def is_started() -> bool:
    return True


def etcd_options(folder: Path, port: int, peer: int) -> list[str]:
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        "--unsafe-no-fsync",
    ]


def server_options(folder: Path, etcd: int, port: int) -> list[str]:
    key = folder / "key.pem"
    return [
        f"--etcd-servers=http://127.0.0.1:{etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",  # refuses loopback addresses
        "--service-cluster-ip-range=10.0.0.0/24",
        f"--tls-cert-file={folder / 'server.pem'}",
        f"--tls-private-key-file={key}",
        f"--token-auth-file={folder / 'tokens'}",
        "--authorization-mode=RBAC",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-account-issuer=https://kubernetes.default.svc",
    ]


def client_options(folder: Path) -> list[str]:
    return [
        f"--kubeconfig={folder / 'kubeconfig'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        f"--secure-port={free_port()}",
        f"--cert-dir={folder}",
    ]


def controller_options(folder: Path) -> list[str]:
    return [
        *client_options(folder),
        f"--service-account-private-key-file={folder / 'key.pem'}",
        "--node-monitor-grace-period=24h",  # no kubelet reports
    ]
