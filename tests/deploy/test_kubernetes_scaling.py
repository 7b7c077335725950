"""What scales each Deployment: who is scaled by what, and that its queries are ones that Prometheus takes."""

import re
import subprocess

import pytest

from tests.support.declared_metrics import declared_metrics
from tests.support.kubernetes import BUILDS, Object, built, component, environment, model, needs_kubectl, of_kind
from tests.support.prometheus import needs_prometheus

pytestmark = needs_kubectl


@pytest.fixture(params=BUILDS)
def objects(request: pytest.FixtureRequest) -> tuple[Object, ...]:
    return built(str(request.param))


def queries(scaler: Object) -> list[str]:
    return [each["metadata"]["query"] for each in scaler["spec"]["triggers"] if each["type"] == "prometheus"]


def test_every_deployment_is_scaled_by_one_object_and_says_no_number_itself(objects: tuple[Object, ...]) -> None:
    deployments, scalers = of_kind(objects, "Deployment"), of_kind(objects, "ScaledObject")
    assert sorted(scaler["spec"]["scaleTargetRef"]["name"] for scaler in scalers.values()) == sorted(deployments)
    assert not any("replicas" in deployment["spec"] for deployment in deployments.values())
    assert all(1 < each["spec"]["minReplicaCount"] < each["spec"]["maxReplicaCount"] for each in scalers.values())


def test_a_runner_is_scaled_by_what_is_measured_of_its_own_model(objects: tuple[Object, ...]) -> None:
    scalers = of_kind(objects, "ScaledObject")
    for name, deployment in of_kind(objects, "Deployment").items():
        asked = queries(scalers[name])
        measured = {each for query in asked for each in re.findall(r"diptych_\w+", query)}
        named = {each for query in asked for each in re.findall(r'model="([^"]*)"', query)}
        assert measured <= declared_metrics()
        if component(deployment) == "gateway":
            assert not asked
        else:
            expected = (
                {"diptych_queue_depth"}
                if component(deployment) == "encoder"
                else {"diptych_slots_taken", "diptych_queue_depth"}
            )
            assert (measured, named) == (expected, {model(deployment)})


def test_decoders_are_added_at_70_percent_of_their_slots(objects: tuple[Object, ...]) -> None:
    scalers = of_kind(objects, "ScaledObject")
    for name, deployment in of_kind(objects, "Deployment").items():
        if component(deployment) == "decoder":
            slots = int(environment(objects, deployment)["DIPTYCH_DECODER_MAX_BATCH_SIZE"])
            (trigger,) = [
                each for each in scalers[name]["spec"]["triggers"] if "slots_taken" in each["metadata"]["query"]
            ]
            assert int(trigger["metadata"]["threshold"]) == int(0.7 * slots)


@needs_prometheus
def test_prometheus_takes_every_query() -> None:
    asked = {
        query
        for folder in BUILDS
        for each in of_kind(built(folder), "ScaledObject").values()
        for query in queries(each)
    }
    assert len(asked) == 6
    for query in asked:
        run = subprocess.run(["promtool", "--experimental", "promql", "format", query], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
