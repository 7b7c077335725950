"""Five questions about each of four things: one analysis against 20 single calls.

    python -m laboratory.analysis [--url URL] [--images N] [--peer] [--questions N]

    sequence      one call after the other
    concurrent    all calls at the same time
    peer          all calls at the same time, with the exact prompts, to the peer of the bench that
                  is the fastest with the embedded models, a server for each

Each way gets its own copy of an image, which the service has not seen. The wall time of the single
calls does not include the detection of the things, that of the analysis does. Tokens of our service
are compared answer by answer. Peers are suspended while ours answers: their idle workers poll.
`--questions` asks so many single questions about a stored image.
"""

import argparse
import asyncio
import io
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from PIL import Image, PngImagePlugin

from export.scenes import render_scene, sample_scene
from laboratory.bench.rounds.servers import best_embedded_peer, peer_launch
from loadtest.figures import milliseconds, shown, table
from loadtest.processes import ROOT, running, suspended
from tasks.catalog import CatalogEntry, load_catalog
from tasks.families import FAMILIES
from tasks.parameters import parse_parameters
from tasks.table import TASKS

_SIDE_PX = 384
_NUM_THINGS = 4  # the embedded checkpoints find no more
_TIMEOUT_S = 600
_KEEP_ALIVE_S = 1.0  # servers close idle connections after some seconds
_MAX_NEW_TOKENS = 128  # a peer's; the embedded checkpoints end earlier
_NUM_CLIENTS = 8  # questions about a stored image at a time
_MODELS = ROOT / "models"
_SIZE_WH = (2 * _SIDE_PX, _SIDE_PX)
_DEFAULT_MODEL = "florence-2-mini"
_OTHER_MODEL = "paligemma-mini"
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
        "model": _OTHER_MODEL,
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
    """A service under test; counts what is sent."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(keepalive_expiry=_KEEP_ALIVE_S)
        self._client = httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, limits=limits)
        self.num_bytes = 0

    async def post(self, path: str, image: bytes | str, fields: Fields) -> Fields:
        """Return the body of the answer; raise for an error. A text is the id of an image."""
        if isinstance(image, str):
            request = self._client.build_request("POST", path, json={"image": image, **fields})
        else:
            form = {}
            for name, value in fields.items():
                form[name] = value if isinstance(value, str) else json.dumps(value)
            files = {"image": image}
            request = self._client.build_request("POST", path, data=form, files=files)
        self.num_bytes += int(request.headers["content-length"])
        response = await self._client.send(request)
        body: Fields = response.raise_for_status().json()
        return body

    async def predict(self, image: bytes, fields: Fields) -> Tokens:
        return _tokens(await self.post("/v1/predict", image, fields))


class Peers:
    """A peer for each model, which takes the exact prompt."""

    def __init__(self, services: Mapping[str, Service], process_ids: Sequence[int]) -> None:
        self._services = services
        self._process_ids = process_ids
        self._catalog: Mapping[str, CatalogEntry] = load_catalog(_MODELS / "catalog.yaml")

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Suspend all peers."""
        with ExitStack() as stack:
            for process_id in self._process_ids:
                stack.enter_context(suspended(process_id))
            yield

    @property
    def num_bytes(self) -> int:
        return sum(service.num_bytes for service in self._services.values())

    async def predict(self, image: bytes, fields: Fields) -> Tokens:
        asked = dict(fields)
        entry = self._catalog[asked.pop("model", _DEFAULT_MODEL)]
        task = asked.pop("task")
        parameters = parse_parameters(TASKS[task], asked)
        (prompt,) = FAMILIES[entry.family].task_prompts(entry, task, parameters, _SIZE_WH)
        text = "".join(segment.text for segment in prompt)
        form = {"prompt": text, "max_new_tokens": _MAX_NEW_TOKENS}
        body = await self._services[entry.id].post("/predict", image, form)
        return body["text"], body["generated_tokens"]


async def singles(
    ask: Callable[[bytes, Fields], Awaitable[Tokens]],
    image: bytes,
    things: Sequence[tuple[int, Fields]],
    is_concurrent: bool,
) -> dict[str, Tokens]:
    """Return the tokens of a single call for each question about each thing."""
    calls: dict[str, Callable[[], Awaitable[Tokens]]] = {}
    for name, fields in _QUESTIONS.items():
        for index, thing in things:
            asked = dict(fields)
            if "phrase" in asked:
                asked["phrase"] = thing["label"]
            else:
                asked["region"] = thing["box"]
            calls[f"{name} {index}"] = partial(ask, image, asked)
    if is_concurrent:
        answers = await asyncio.gather(*(call() for call in calls.values()))
        return dict(zip(calls, answers, strict=True))
    return {name: await call() for name, call in calls.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m laboratory.analysis")
    parser.add_argument("--url", default="http://127.0.0.1:3000")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--peer", action="store_true", help="compare with a peer of the bench too")
    parser.add_argument("--questions", type=int, default=0, help="about one stored image")
    parsed = parser.parse_args(arguments)
    with ExitStack() as stack:
        peers = stack.enter_context(started_peers()) if parsed.peer else None
        asyncio.run(_run(Service(parsed.url), parsed.images, peers, parsed.questions))


@contextmanager
def started_peers() -> Iterator[Peers]:
    """Start the peer of each model, and stop it."""
    from laboratory.bench.material.encoder_graphs import write_encoder_graph  # imports transformers

    services = {}
    process_ids = []
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        for model in (_DEFAULT_MODEL, _OTHER_MODEL):
            graph = Path(name, f"{model}.onnx")
            write_encoder_graph(_MODELS / model, graph)
            launch = peer_launch(best_embedded_peer(), _MODELS / model, graph)
            log = Path(name, f"{model}.log")
            process_ids.append(stack.enter_context(running(launch, log)))
            services[model] = Service(launch.url)
        yield Peers(services, process_ids)


async def _run(service: Service, num_images: int, peers: Peers | None, num_questions: int) -> None:
    if num_images:
        await compare(service, peers, num_images)
    if num_questions:
        await ask_about_stored(service, num_questions)


async def compare(service: Service, peers: Peers | None, num_images: int) -> None:
    """Print the wall times, bytes and differing tokens of all ways to ask."""
    ways = {name: Way() for name in ("analysis", "sequence", "concurrent")}
    await _analysis(service, _image(-1, "warm-up"))
    if peers is not None:
        ways["peer"] = Way()
        await singles(peers.predict, _image(-1, "peer"), await _things(service, -1), True)
    num_answers = 0
    num_of_peer = 0
    differing: list[str] = []
    names = list(ways)
    for index in range(num_images):
        things = await _things(service, index)
        found: dict[str, dict[str, Tokens]] = {}
        first = index % len(ways)
        for name in names[first:] + names[:first]:
            image = _image(index, name)
            if peers is None:
                found[name] = await _timed(ways[name], name, service, image, things)
            elif name == "peer":
                found[name] = await _timed(ways[name], name, peers, image, things)
            else:
                with peers.suspended():
                    found[name] = await _timed(ways[name], name, service, image, things)
        num_answers += len(found["sequence"])
        num_of_peer += len(found["sequence"].items() & found.get("peer", {}).items())
        differing += differences(index, found)
    print(f"{num_images} images, {num_answers} answers, {len(differing)} differ in tokens")
    print("\n".join(differing[:20]))
    if peers is not None:
        print(f"{num_of_peer} answers of the peer equal ours in text and number of tokens")
    print(report(ways))


async def _timed(
    way: Way,
    name: str,
    server: Service | Peers,
    image: bytes,
    things: Sequence[tuple[int, Fields]],
) -> dict[str, Tokens]:
    """Return the answers of one way; add its wall time and its bytes to `way`."""
    sent_before = server.num_bytes
    start_s = time.monotonic()
    if isinstance(server, Service) and name == "analysis":
        found = await _analysis(server, image)
    else:
        found = await singles(server.predict, image, things, name != "sequence")
    way.wall_s.append(time.monotonic() - start_s)
    way.num_bytes.append(server.num_bytes - sent_before)
    return found


async def ask_about_stored(service: Service, num_questions: int) -> None:
    """Send single questions about one stored image; print how many bytes each takes."""
    image = _image(0, "stored")
    sent_before = service.num_bytes
    stored = await service.post("/v1/images", image, {})
    num_stored = service.num_bytes - sent_before
    free = asyncio.Semaphore(_NUM_CLIENTS)

    async def ask(index: int) -> Tokens:
        left = index % (2 * _SIDE_PX - 50)
        region = [left, index % 300, left + 50, index % 300 + 50]
        fields = {"task": "region_description", "region": region}
        async with free:
            return _tokens(await service.post("/v1/predict", stored["id"], fields))

    start_s = time.monotonic()
    await asyncio.gather(*map(ask, range(num_questions)))
    elapsed_s = time.monotonic() - start_s
    num_sent = service.num_bytes - sent_before - num_stored
    print(f"the image is {len(image)} bytes and is sent once, in {num_stored}")
    each = num_sent / num_questions
    print(f"{num_questions} questions send {each:.0f} bytes each: its id and the fields, no image")
    print(f"{num_questions / elapsed_s:.1f} questions/s by {_NUM_CLIENTS} clients")


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


async def _things(service: Service, index: int) -> list[tuple[int, Fields]]:
    """Return the best detections in an image, with their indices."""
    image = _image(index, "things")
    detected = await service.post("/v1/predict", image, {"task": _THINGS["task"]})
    numbered = list(enumerate(detected["result"]["detections"]))
    return sorted(numbered, key=lambda each: -each[1]["score"])[:_NUM_THINGS]


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
    image = Image.new("RGB", _SIZE_WH)
    for column in range(2):
        scene = sample_scene(2 * (seed + 1) + column, num_objects=4)
        image.paste(render_scene(scene, _SIDE_PX), (column * _SIDE_PX, 0))
    text = PngImagePlugin.PngInfo()
    text.add_text("copy", f"{copy} {time.monotonic_ns()}")
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


if __name__ == "__main__":
    main()
