"""Five questions about each of five things: one analysis against 25 single calls.

    python -m laboratory.analysis [--url URL] [--images N]

    sequence      one call after the other
    concurrent    all calls at the same time

Each way gets its own copy of an image, which the service has not seen. The wall time of the single
calls does not include the detection of the things, that of the analysis does. Tokens are compared
answer by answer. It knows the REST API and no model.
"""

import argparse
import asyncio
import io
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from PIL import Image, PngImagePlugin

from export.scenes import render_scene, sample_scene
from loadtest.figures import milliseconds, shown, table

_SIDE_PX = 384
_NUM_THINGS = 5
_TIMEOUT_S = 600
_THINGS = {"id": "things", "task": "object_detection"}
# The fields of each question; {label} is filled, and the box is the region of the others.
_QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "description": {"task": "region_description"},
    "category": {"task": "region_description", "detail": "category"},
    "text": {"task": "region_description", "detail": "text"},
    "outline": {"task": "instance_segmentation"},
    "mask": {
        "task": "instance_segmentation",
        "phrase": "{label}",
        "model": "paligemma-mini",
    },
}

Fields = dict[str, Any]
Tokens = tuple[str, int]  # raw text and number of generated tokens


@dataclass(slots=True)
class Way:
    """Wall times and bytes sent of one way to ask, an element for each image."""

    wall_s: list[float] = field(default_factory=list)
    num_bytes: list[int] = field(default_factory=list)


class Service:
    """The service under test; counts what is sent."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.num_bytes = 0

    async def post(self, path: str, image: bytes, fields: Fields) -> Fields:
        """Return the body of the answer; raise for an error."""
        form = {}
        for name, value in fields.items():
            form[name] = value if isinstance(value, str) else json.dumps(value)
        request = self._client.build_request("POST", path, data=form, files={"image": image})
        self.num_bytes += int(request.headers["content-length"])
        response = await self._client.send(request)
        body: Fields = response.raise_for_status().json()
        return body

    async def singles(
        self, image: bytes, things: Sequence[tuple[int, Fields]], is_concurrent: bool
    ) -> dict[str, Tokens]:
        """Return the tokens of a single call for each question about each thing."""
        calls: dict[str, Callable[[], Awaitable[Fields]]] = {}
        for name, fields in _QUESTIONS.items():
            for index, thing in things:
                asked = dict(fields)
                if "phrase" in asked:
                    asked["phrase"] = thing["label"]
                else:
                    asked["region"] = thing["box"]
                calls[f"{name} {index}"] = partial(self.post, "/v1/predict", image, asked)
        if is_concurrent:
            answers = await asyncio.gather(*(call() for call in calls.values()))
            return dict(zip(calls, map(_tokens, answers), strict=True))
        return {name: _tokens(await call()) for name, call in calls.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m laboratory.analysis")
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--images", type=int, default=100)
    parsed = parser.parse_args(arguments)
    asyncio.run(_run(parsed.url, parsed.images))


async def _run(url: str, num_images: int) -> None:
    ways = {"analysis": Way(), "sequence": Way(), "concurrent": Way()}
    num_answers = 0
    differing: list[str] = []
    async with httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S) as client:
        service = Service(client)
        await _analysis(service, _image(-1, "warm-up"))
        for index in range(num_images):
            detected = await service.post(
                "/v1/predict", _image(index, "things"), {"task": _THINGS["task"]}
            )
            numbered = list(enumerate(detected["result"]["detections"]))
            things = sorted(numbered, key=lambda each: -each[1]["score"])[:_NUM_THINGS]
            found: dict[str, dict[str, Tokens]] = {}
            for way in _rotated(list(ways), index):
                image = _image(index, way)
                sent_before = service.num_bytes
                start_s = time.monotonic()
                if way == "analysis":
                    found[way] = await _analysis(service, image)
                else:
                    found[way] = await service.singles(image, things, way == "concurrent")
                ways[way].wall_s.append(time.monotonic() - start_s)
                ways[way].num_bytes.append(service.num_bytes - sent_before)
            num_answers += len(found["sequence"])
            differing += differences(index, found)
    print(f"{num_images} images, {num_answers} answers, {len(differing)} differ in tokens")
    print("\n".join(differing[:20]))
    print(report(ways))


def report(ways: Mapping[str, Way]) -> str:
    """Return a table of the medians, and of the shares of the analysis in the other ways."""
    analysis = ways["analysis"]
    rows = []
    for name, way in ways.items():
        shares = [one / other for one, other in zip(analysis.wall_s, way.wall_s, strict=True)]
        sent = [one / other for one, other in zip(analysis.num_bytes, way.num_bytes, strict=True)]
        rows.append(
            [
                name,
                milliseconds(statistics.median(way.wall_s)),
                shown(statistics.median(shares)),
                shown(statistics.median(sent)),
            ]
        )
    return table(["way", "wall p50, ms", "analysis ÷ it", "bytes sent, analysis ÷ it"], rows)


async def _analysis(service: Service, image: bytes) -> dict[str, Tokens]:
    steps: list[Fields] = [_THINGS]
    for name, fields in _QUESTIONS.items():
        steps.append({"id": name, **fields, "each": "things", "max_each": _NUM_THINGS})
    body = await service.post("/v1/analyze", image, {"steps": steps})
    found = {}
    for step in body["steps"][1:]:
        for answer in step["answers"]:
            found[f"{step['id']} {answer['of']}"] = _tokens(answer)
    return found


def _tokens(answer: Fields) -> Tokens:
    if "error" in answer:
        return f"error {answer['error']['code']}", 0
    return answer["raw_text"], answer["usage"]["generated_tokens"]


def differences(index: int, found: Mapping[str, Mapping[str, Tokens]]) -> list[str]:
    differing = []
    for name, tokens in found["sequence"].items():
        for way in ("analysis", "concurrent"):
            other = found[way].get(name)
            if other != tokens:
                differing.append(f"image {index}, {name}, {way}: {other} instead of {tokens}")
    return differing


def _image(seed: int, copy: str) -> bytes:
    """Return two scenes side by side as PNG; `copy` changes the file and no pixel."""
    image = Image.new("RGB", (2 * _SIDE_PX, _SIDE_PX))
    for column in range(2):
        scene = sample_scene(2 * (seed + 1) + column, num_objects=4)
        image.paste(render_scene(scene, _SIDE_PX), (column * _SIDE_PX, 0))
    text = PngImagePlugin.PngInfo()
    text.add_text("copy", f"{copy} {time.monotonic_ns()}")
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _rotated(names: list[str], by: int) -> list[str]:
    start = by % len(names)
    return names[start:] + names[:start]


if __name__ == "__main__":
    main()
