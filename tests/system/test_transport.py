"""The real runners' processes, called over their sockets as the gateway calls them: through memory, and with bytes."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter

from runners.artifacts import Manifest, read_manifest
from runners.messages import (
    AnyArray,
    Array,
    Encoded,
    EncodeOutcome,
    ImageToEncode,
    MemoryAddress,
    Outcomes,
    SequenceSpec,
    WritingEvent,
    Written,
)
from service.runner_apis import DecoderApi, EncoderApi, Runner
from service.runner_client import RunnerClient
from service.shared_memory import Block, SharedMemory
from service.vision_cache import Features, VisionCache
from tests.support.export_cli import ModelStore
from tests.support.fake_runners import alone
from tests.support.processes import run_folder_of
from tests.support.running_service import RunningService
from tests.support.service_metrics import metric

Fields = Mapping[str, BaseModel | Sequence[BaseModel]]
FIELDS: TypeAdapter[Mapping[str, object]] = TypeAdapter(Mapping[str, object])
EVENT: TypeAdapter[WritingEvent] = TypeAdapter(WritingEvent)
HEADERS = {"Content-Type": "application/json"}
SPEC = SequenceSpec(segments=[("What does the image describe?", True)], max_new_tokens=20, timeout_s=60)


@dataclass(frozen=True, slots=True)
class RunnerOverHttp:
    """A runner's service, without BentoML's client."""

    http: httpx.AsyncClient

    async def post(self, path: str, fields: Fields) -> bytes:
        response = await self.http.post(path, content=FIELDS.dump_json(fields), headers=HEADERS)
        return response.raise_for_status().content

    async def can_open(self, memory: MemoryAddress) -> bool:
        return bool(json.loads(await self.post("/can_open", {"memory": memory})))

    async def is_ready(self, timeout: int) -> bool:
        return (await self.http.get("/readyz", timeout=timeout)).is_success

    async def close(self) -> None:
        """Leave it to the client's owner."""

    async def encode(self, image: ImageToEncode) -> EncodeOutcome:
        return Encoded.model_validate_json(await self.post("/encode", {"image": image})).outcome

    async def write(self, image_features: AnyArray, sequences: list[SequenceSpec]) -> Outcomes:
        fields = {"image_features": image_features, "sequences": sequences}
        return Outcomes.model_validate_json(await self.post("/write", fields))

    async def stream(
        self, image_features: AnyArray, sequences: list[SequenceSpec]
    ) -> AsyncGenerator[WritingEvent, None]:
        body = FIELDS.dump_json({"image_features": image_features, "sequences": sequences})
        async with self.http.stream("POST", "/stream", content=body, headers=HEADERS) as response:
            async for line in response.raise_for_status().aiter_lines():
                if line:
                    yield EVENT.validate_json(line)


async def answer(
    service: RunningService, manifest: Manifest, pixels: NDArray[np.uint8], memory: SharedMemory | None
) -> tuple[Features, Written]:
    folder = run_folder_of(service.process.pid)

    def client(part: str) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(folder / f"{manifest.model_id}-{part}.sock"))
        return httpx.AsyncClient(transport=transport, base_url="http://runner", timeout=60)

    async with client("encoder") as encoder, client("decoder") as decoder:
        encoders: Runner[EncoderApi] = alone(RunnerOverHttp(encoder), memory)
        decoders: Runner[DecoderApi] = alone(RunnerOverHttp(decoder), memory)
        runners = RunnerClient(manifest, encoders, decoders, VisionCache(0, 1))
        features = (await runners.encode(pixels)).image_features
        (written,) = (await runners.write(features, [SPEC])).sequences
        texts: list[str] = []
        (streamed,) = (await runners.write(features, [SPEC], texts.append)).sequences
        assert "".join(texts) == streamed.text == written.text
    return features, written


def test_features_and_answers_are_bit_equal_through_memory_and_with_bytes(
    exported: ModelStore, service: RunningService, model_id: str
) -> None:
    manifest = read_manifest(exported.newest(model_id))
    width, height = manifest.image_size_wh
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shared, by_memory = asyncio.run(answer(service, manifest, pixels, SharedMemory()))
    sent, by_bytes = asyncio.run(answer(service, manifest, pixels, None))
    kept, _ = asyncio.run(answer(service, manifest, pixels, None))
    assert isinstance(shared, Block)
    assert isinstance(sent, Array)
    assert isinstance(kept, Array)
    assert np.array_equal(shared.read(), sent.numpy())
    assert np.array_equal(sent.numpy(), kept.numpy())  # of the second time, from the encoder's own cache
    counted = {"model": manifest.model_id, "outcome": "hit"}
    assert metric(service, "diptych_encoder_cache_requests_total", **counted) >= 1
    assert (by_memory.text, by_memory.logprobs) == (by_bytes.text, by_bytes.logprobs)
