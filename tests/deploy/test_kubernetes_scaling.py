"""The metrics and thresholds that scale each Deployment; Prometheus accepts the queries."""

import re
import subprocess

import pytest

from tests.support.declared_metrics import declared_metrics
from tests.support.kubernetes import (
    REPLICATED,
    Object,
    built,
    component,
    model,
    needs_kubectl,
    of_kind,
)
from tests.support.prometheus import needs_prometheus

pytestmark = needs_kubectl

CPU, GPU = REPLICATED


@pytest.fixture(params=REPLICATED)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


def queries(scaler: Object) -> list[str]:
    return [
        each["metadata"]["query"]
        for each in scaler["spec"]["triggers"]
        if each["type"] == "prometheus"
    ]


def test_every_deployment_is_scaled_by_one_object_and_sets_no_number_itself(
    objects: tuple[Object, ...],
) -> None:
    deployments = of_kind(objects, "Deployment")
    scalers = of_kind(objects, "ScaledObject")
    assert sorted(
        scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers.values()
    ) == sorted(deployments)
    assert not any("replicas" in deployment["spec"] for deployment in deployments.values())
    assert all(
        1 <= each["spec"]["minReplicaCount"] < each["spec"]["maxReplicaCount"]
        for each in scalers.values()
    )


def test_a_runner_is_scaled_by_what_is_measured_of_its_own_model(
    objects: tuple[Object, ...],
) -> None:
    scalers = of_kind(objects, "ScaledObject")
    for name, deployment in of_kind(objects, "Deployment").items():
        asked = queries(scalers[name])
        measured = {each for query in asked for each in re.findall(r"diptych_\w+", query)}
        named = {each for query in asked for each in re.findall(r'model="([^"]*)"', query)}
        assert measured <= declared_metrics()
        if component(deployment) == "gateway":
            assert not asked
        else:
            assert (measured, named) == (
                {"diptych_slots_taken", "diptych_queue_depth"},
                {model(deployment)},
            )
            stages = re.findall(r'stage=~?"([^"]*)"', " ".join(asked))
            assert sorted("|".join(stages).split("|")) == ["admission", "decode", "encode"]


@needs_prometheus
def test_prometheus_accepts_every_query() -> None:
    asked = {
        query
        for folder in REPLICATED
        for each in of_kind(built(folder), "ScaledObject").values()
        for query in queries(each)
    }
    assert len(asked) == 6
    for query in asked:
        run = subprocess.run(
            ["promtool", "--experimental", "promql", "format", query],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
