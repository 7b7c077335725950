"""Prints the answers of a gateway whose runner is in its own process.

    python -m tests.support.gateway_without_processes MODEL IMAGE

One line of JSON: the body of a predict, that of the same as a stream, the adapters that the channel
reports, and the refusal of another build. It runs as a separate process, because a runner watches,
and may end, the process that holds it.
"""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from imaging.files import ImageLimits
from runners.in_process_channel import InProcessChannel
from service.admission.api_keys import ApiKeys
from service.environment import read_settings
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import Core, CoreLimits
from service.inference.served_models import ServedModels, load_served_models, served_entries
from service.process_options import runner_options
from service.runner_client.runner_client import RunnerClient
from wire.artifacts.manifest import ArtifactError

FIELDS = {"task": "object_detection"}
LIMITS = CoreLimits(ImageLimits(1_000_000), 2, 64, 24, 200_000, 1_000_000_000, 1_000_000_000)


async def answered(model_id: str, image: bytes) -> dict[str, Any]:
    """Load the model, answer through the REST app, and close the channel."""
    settings = read_settings({"DIPTYCH_MODELS": model_id})
    models = load_served_models(settings)
    manifest = models[model_id].manifest
    options = runner_options(model_id, settings, served_entries(settings))
    channel = InProcessChannel(manifest, options)
    channel.load()
    runner = RunnerClient(model_id, channel)
    core = Core(ServedModels(models), {model_id: runner}, LIMITS)
    boundary = RestBoundary(settings)
    boundary.start(core, ApiKeys(None))
    transport = httpx.ASGITransport(rest_app(boundary))
    async with httpx.AsyncClient(transport=transport, base_url="http://diptych") as client:
        files = {"image": image}
        body = await client.post("/v1/predict", data=FIELDS, files=files)
        stream = await client.post("/v1/predict", data=FIELDS | {"stream": "true"}, files=files)
    adapters = await runner.adapters()
    is_ready = await runner.is_ready()
    await runner.close()
    other = InProcessChannel(replace(manifest, build_key="theirs"), options)
    return {
        "body": body.json(),
        "stream": stream.text,
        "adapters": None if adapters is None else adapters.model_dump(mode="json"),
        "is_ready": is_ready,
        "build_key": manifest.build_key,
        "refusal": refusal(other),
    }


def refusal(channel: InProcessChannel) -> str | None:
    """Return the reason for which the channel does not load."""
    try:
        channel.load()
    except ArtifactError as error:
        return str(error)
    return None


if __name__ == "__main__":
    model_id, path = sys.argv[1:]
    print(json.dumps(asyncio.run(answered(model_id, Path(path).read_bytes()))), flush=True)
    os._exit(0)  # the threads of the runner are not to be joined
