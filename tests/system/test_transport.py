"""A real runner, called as the gateway calls it: over a socket, pixels in memory; over TCP, pixels
in the body.
"""

import asyncio
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from tests.support.export_cli import ModelStore
from tests.support.processes import run_folder_of
from tests.support.replicas import MODEL, Replicas, replicas
from tests.support.running_service import RunningService
from wire.artifacts.manifest import Manifest, read_manifest
from wire.http_channel import HttpChannel
from wire.pixels import BUILD_HEADER, IMAGE_KEY_HEADER, JSON
from wire.runner_channel import FeaturesMissing, RunnerCall
from wire.runner_messages import FoundFeatures, SequenceSpec, TextPiece, Written

SPEC = SequenceSpec(
    segments=[("What does the image describe?", True)], max_new_tokens=20, timeout_s=60
)


@pytest.fixture(scope="module")
def runner(exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """One runner as a separate service."""
    with replicas(exported, tmp_path_factory.mktemp("runner"), 1) as made:
        yield made


def url_of(runner: Replicas) -> str:
    return f"http://127.0.0.1:{runner.ports[0]}"


def manifest_of(exported: ModelStore) -> Manifest:
    return read_manifest(exported.newest(MODEL))


async def asked(url: str, manifest: Manifest, key: str) -> list[Written]:
    """Return the answers to a call that brings pixels, to one that does not, and to a stream.

    They are equal.
    """
    width, height = manifest.image_size_wh
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    channel = HttpChannel(url, manifest.build_key, 60)
    try:
        with pytest.raises(FeaturesMissing):
            await channel.write(RunnerCall(key, [SPEC]))
        new = await channel.write(RunnerCall(key, [SPEC], pixels))
        kept = await channel.write(RunnerCall(key, [SPEC]))
        assert (new.features.outcome, kept.features.outcome) == ("miss", "hit")
        features, *events = [event async for event in channel.stream(RunnerCall(key, [SPEC]))]
        assert isinstance(features, FoundFeatures)
        written = [each for each in (*new.outcomes, *kept.outcomes) if isinstance(each, Written)]
        assert (
            "".join(event.text for event in events if isinstance(event, TextPiece))
            == written[0].text
        )
        return written
    finally:
        await channel.close()


def test_answers_are_bit_equal_through_memory_and_in_the_body(
    exported: ModelStore, service: RunningService, runner: Replicas
) -> None:
    manifest = manifest_of(exported)
    socket = run_folder_of(service.process.pid) / "0.sock"  # the first model's
    by_memory = asyncio.run(asked(socket.as_uri(), manifest, "a" * 64))
    by_body = asyncio.run(asked(url_of(runner), manifest, "b" * 64))
    first = by_memory[0]
    assert all(
        (each.text, each.logprobs) == (first.text, first.logprobs)
        for each in (*by_memory, *by_body)
    )


def test_a_runner_alone_answers_probes_and_metrics(runner: Replicas) -> None:
    with runner.running[runner.ports[0]].client() as client:
        assert {client.get(path).status_code for path in ("/livez", "/readyz", "/metrics")} == {200}
        assert (
            f'diptych_start_time_seconds{{model="{MODEL}",part="runner"}}'
            in client.get("/metrics").text
        )
        assert client.get("/readyz", headers={BUILD_HEADER: "another"}).status_code == 503


def test_a_call_that_is_none_of_a_gateway_is_refused(runner: Replicas) -> None:
    call: dict[str, object] = {"sequences": []}
    key = {IMAGE_KEY_HEADER: "a"}
    memory = {"pid": 1, "fd": 0, "name": "diptych-x"}
    with httpx.Client(base_url=url_of(runner), timeout=60) as client:
        assert client.post("/write", json=call).status_code == 400
        assert client.post("/write", json=call, headers=key).status_code == 404
        assert client.post("/write", json=call | {"pixels": memory}, headers=key).status_code == 400
        assert (
            client.post("/write", content=b"{", headers=key | {"Content-Type": JSON}).status_code
            == 400
        )


def test_images_sent_together_share_batches(exported: ModelStore, runner: Replicas) -> None:
    """How many share one is a matter of their arrival: rounds are sent until any do."""
    manifest = manifest_of(exported)

    async def encode_round(number: int) -> None:
        width, height = manifest.image_size_wh
        pixels = np.zeros((height, width, 3), dtype=np.uint8)
        channel = HttpChannel(url_of(runner), manifest.build_key, 60)
        keys = [f"{number:032x}{image:032x}" for image in range(24)]
        await asyncio.gather(*(channel.write(RunnerCall(key, [], pixels)) for key in keys))
        await channel.close()

    def encoded() -> tuple[float, float]:
        with runner.running[runner.ports[0]].client() as client:
            lines = client.get("/metrics").text.splitlines()
        labels = f'{{model="{MODEL}",stage="encode"}}'
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        # 0: nothing was encoded yet
        num_batches = float(values.get(f"diptych_batch_size_count{labels}", 0))
        num_images = float(values.get(f"diptych_batch_size_sum{labels}", 0))
        return num_batches, num_images

    batches_before, images_before = encoded()
    for number in range(1, 20):
        asyncio.run(encode_round(number))
        num_batches, num_images = encoded()
        assert num_images - images_before == 24 * number
        if num_batches - batches_before < num_images - images_before:
            return
    pytest.fail("no two images shared a batch")
