"""A rolling update on a real control plane; pods are real processes behind HAProxy."""

import asyncio
import random
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.cluster import IN_NAMESPACE, Cluster, needs_api_server, running_cluster
from tests.deploy.name_server import NameServer, name_server
from tests.deploy.test_haproxy import (
    CALL_S,
    DOMAIN,
    KEYS,
    MODEL,
    NUM_CLIENTS,
    RunnerProcess,
    calls_to,
    next_runners,
    sidecar,
)
from tests.support.export_cli import ROOT
from tests.support.haproxy import needs_haproxy
from tests.support.running_service import free_port
from tests.support.waiting import repeating, wait_until

pytestmark = [pytest.mark.long, needs_api_server, needs_haproxy]

OVERLAY = ROOT / "deploy" / "kubernetes" / "overlays" / "cpu"
RUNNER = f"{MODEL}-runner"
DEPLOYMENT = f"deployment/{RUNNER}"
NUM_PODS = 2
OLD, NEW = "diptych:cpu", "diptych:next"


class Kubelet:
    """Runs the pods of a model's Deployment as small runners, on loopback addresses, and is the DNS
    of its headless Service.
    """

    def __init__(self, cluster: Cluster, dns: NameServer, port: int, stack: ExitStack) -> None:
        self._cluster = cluster
        self._dns = dns
        self._port = port
        self._stack = stack
        self._runners: dict[str, RunnerProcess] = {}
        self.pods: list[dict[str, Any]] = []
        self.ready_counts: list[int] = []

    def step(self) -> None:
        selector = f"--selector=app.kubernetes.io/instance={MODEL}"
        self.pods = self._cluster.objects("pods", selector)
        for pod in self.pods:
            name = pod["metadata"]["name"]
            if name not in self._runners and "nodeName" in pod["spec"]:
                self._start(name, pod["spec"]["containers"][0]["image"])
            elif "deletionTimestamp" in pod["metadata"]:
                self._stop(name)
        self._read_endpoints()

    def _start(self, name: str, image: str) -> None:
        number = len(self._runners) + 1
        runner = RunnerProcess(image, f"127.0.1.{number}", self._port)
        self._runners[name] = self._stack.enter_context(runner)
        self._cluster.set_running(name, number)

    def _stop(self, name: str) -> None:
        process = self._runners[name].process
        process.terminate()  # at once: the manifest has no preStop
        if process.poll() is not None:
            self._cluster.remove(name)

    def _read_endpoints(self) -> None:
        """Name the ready pods; a cluster refuses endpoints of loopback addresses."""
        addresses = []
        selector = f"--selector=kubernetes.io/service-name={RUNNER}"
        for endpoints in self._cluster.objects("endpointslices", selector):
            for endpoint in endpoints.get("endpoints") or ():
                if endpoint["conditions"]["ready"]:
                    addresses += endpoint["addresses"]
        self._dns.addresses = [address.replace("10.1.0", "127.0.1") for address in addresses]
        self.ready_counts.append(len(addresses))


def keys() -> Iterator[str]:
    numbers = random.Random(2)
    while True:
        yield numbers.choice(KEYS)


def test_update_under_load_loses_nothing(tmp_path: Path) -> None:
    """KEDA's part, the number of pods, is the test's."""
    with ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(tmp_path))
        dns = stack.enter_context(name_server(f"{RUNNER}.{DOMAIN}", ()))
        port = free_port()
        kubelet = Kubelet(cluster, dns, port, stack)
        balancer = stack.enter_context(sidecar(dns.port, port, tmp_path))
        cluster.kubectl("apply", f"--kustomize={OVERLAY}")
        cluster.kubectl("scale", f"--replicas={NUM_PODS}", DEPLOYMENT, IN_NAMESPACE)
        stack.enter_context(repeating(kubelet.step))
        rollout = ["rollout", "status", DEPLOYMENT, IN_NAMESPACE, "--timeout=300s"]

        def are_settled() -> bool:
            return len(kubelet.pods) == NUM_PODS and balancer.num_ready(MODEL) == NUM_PODS

        cluster.kubectl(*rollout)
        wait_until(are_settled)
        start = len(kubelet.ready_counts)

        def update() -> None:
            cluster.kubectl("set", "image", DEPLOYMENT, f"runner={NEW}", IN_NAMESPACE)
            cluster.kubectl(*rollout)
            wait_until(are_settled)

        async def update_under_load() -> None:
            async with calls_to(balancer) as calls:
                load = asyncio.create_task(calls.make_all(keys(), NUM_CLIENTS, CALL_S))
                assert set(await next_runners(calls)) == {OLD}
                await asyncio.to_thread(update)
                assert set((await next_runners(calls))[NUM_CLIENTS:]) == {NEW}
                load.cancel()
                assert calls.all_are_right()

        asyncio.run(update_under_load())
        assert set(kubelet.ready_counts[start:]) <= {NUM_PODS, NUM_PODS + 1}
