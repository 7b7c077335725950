"""One analysis over the running service: the tokens of single calls, nothing left behind."""

import io
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import grpc
import httpx
import pytest
from PIL import Image

from diptych_client import Analysis, Answer, Client
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from tests.support.export_cli import EMBEDDED, ModelStore
from tests.support.running_service import RunningService, running_service
from tests.support.scene_images import scene_png
from tests.support.server_sent_events import parse_events
from tests.support.service_metrics import metric
from tests.support.waiting import wait_until

SCENES = [scene_png(seed, (640, 480)) for seed in (3, 11, 12)]
THINGS = {"id": "things", "task": "object_detection"}
STEPS: list[dict[str, Any]] = [
    THINGS,
    {"id": "what", "task": "region_description", "each": "things"},
    {"id": "category", "task": "region_description", "each": "things", "detail": "category"},
    {"id": "outline", "task": "instance_segmentation", "each": "things"},
    {
        "id": "mask",
        "task": "instance_segmentation",
        "each": "things",
        "phrase": "{label}",
        "model": "paligemma-mini",
    },
    {"id": "close", "task": "captioning", "each": "things", "view": "crop", "models": [*EMBEDDED]},
    {
        "id": "asked",
        "task": "visual_question_answering",
        "each": "things",
        "view": "crop",
        "question": "what colour is the {label}?",
        "model": "paligemma-mini",
    },
    {"id": "all", "task": "captioning", "detail": "detailed", "models": [*EMBEDDED]},
]


def analyze(client: httpx.Client, image: bytes, steps: Any = STEPS) -> Any:
    form = {"steps": json.dumps(steps)}
    response = client.post("/v1/analyze", data=form, files={"image": image})
    assert response.is_success, response.text
    return response.json()


def single(
    client: httpx.Client, image: bytes, step: dict[str, Any], answer: Any, things: Any
) -> Any:
    """Return the answer of the single call that an answer of an analysis stands for."""
    own = ("id", "each", "view", "models")
    fields = {name: value for name, value in step.items() if name not in own}
    fields["model"] = answer["model"]
    if "of" in answer:
        thing = things[answer["of"]]
        for name in {"phrase", "question"} & fields.keys():
            fields[name] = fields[name].replace("{label}", thing["label"])
        if "view" in answer:
            file = io.BytesIO()
            Image.open(io.BytesIO(image)).crop(answer["view"]).save(file, "PNG")
            image = file.getvalue()
        elif "phrase" not in fields:
            fields["region"] = json.dumps(thing["box"])
    response = client.post("/v1/predict", data=fields, files={"image": image})
    assert response.is_success, response.text
    return response.json()


def test_each_answer_has_the_tokens_of_the_single_call(client: httpx.Client) -> None:
    num_compared = 0
    for image in SCENES:
        document = analyze(client, image)
        things = document["steps"][0]["answers"][0]["result"]["detections"]
        assert things
        for step, answered in zip(STEPS, document["steps"], strict=True):
            expected = len(things) if "each" in step else 1
            assert len(answered["answers"]) == expected * len(step.get("models", [""]))
            for answer in answered["answers"]:
                alone = single(client, image, step, answer, things)
                assert answer["raw_text"] == alone["raw_text"], (step, answer, alone)
                for name in ("generated_tokens", "prompt_tokens"):
                    assert answer["usage"][name] == alone["usage"][name]
                num_compared += 1
    assert num_compared > 40


def texts(analysis: Analysis) -> dict[str, list[tuple[int | None, str]]]:
    found: dict[str, list[tuple[int | None, str]]] = {}
    for step in analysis.steps:
        for answer in step.answers:
            assert isinstance(answer.outcome, Answer)
            found.setdefault(step.id, []).append((answer.of, answer.outcome.raw_text))
    return found


def test_the_client_gets_the_same_over_rest_and_grpc(service: RunningService) -> None:
    (image, *_) = SCENES
    with Client(service.url) as rest, Client(f"grpc://{service.grpc_address}") as over_grpc:
        expected = texts(rest.analyze(image, STEPS))
        assert texts(over_grpc.analyze(image, STEPS)) == expected
        with rest.image(image) as stored:
            assert stored.id is not None
            assert texts(rest.analyze(stored, STEPS)) == expected
            identifier = stored.id.encode()
            with grpc.insecure_channel(service.grpc_address) as channel:
                request = pb.AnalyzeRequest(image=identifier, steps=[pb.Step(id="a", task="ocr")])
                events = list(VisionStub(channel).AnalyzeStream(request))
        assert [each.WhichOneof("event") for each in events] == ["answer", "analysis"]


def test_a_client_that_leaves_ends_all_sequences(service: RunningService) -> None:
    """The answers take seconds: they are long, sampled and not constrained."""
    long = {
        "model": "paligemma-mini",
        "temperature": 2.0,
        "max_new_tokens": 300,
        "constrained": False,
    }
    steps = [{"id": f"a{number}", "task": "captioning", **long} for number in range(16)]
    steps.append({"id": "short", "task": "captioning"})
    form = {"steps": json.dumps(steps[1:]), "stream": "true"}
    gone_before = metric(service, "diptych_requests_total", status="client_gone")
    with (
        service.client() as client,
        client.stream("POST", "/v1/analyze", data=form, files={"image": SCENES[0]}) as response,
    ):
        assert b"event: answer" in next(response.iter_raw())

    def is_free() -> bool:
        names = ("diptych_live_sequences", "diptych_request_memory_bytes")
        is_gone = metric(service, "diptych_requests_total", status="client_gone") > gone_before
        return is_gone and sum(metric(service, name) for name in names) == 0

    wait_until(is_free)


@pytest.fixture
def killed(exported: ModelStore, tmp_path: Any) -> Iterator[RunningService]:
    with running_service(exported.home, tmp_path / "service.log") as running:
        yield running


@pytest.mark.long
def test_a_runner_that_is_killed_in_the_middle_of_a_tree_loses_and_repeats_no_answer(
    killed: RunningService,
) -> None:
    with killed.client() as client:
        expected = [shown(analyze(client, image)) for image in SCENES]
    stopped = threading.Event()

    def ask(number: int) -> list[bool]:
        equal = []
        with killed.client() as client:
            while not stopped.is_set():
                index = number % len(SCENES)
                *events, (_, document) = streamed(client, SCENES[index])
                answers = [line(event.pop("step"), event) for _, event in events]
                equal.append(shown(document) == expected[index])
                equal.append(sorted(answers, key=str) == sorted(expected[index], key=str))
        return equal

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        time.sleep(1)  # until the trees are in the middle
        os.kill(killed.parts()["florence-2-mini-runner"], signal.SIGKILL)
        time.sleep(1)
        killed.wait_until_ready()
        stopped.set()
        outcomes = list(chain.from_iterable(each.result() for each in asking))
    assert len(outcomes) >= 8
    assert all(outcomes)


def streamed(client: httpx.Client, image: bytes) -> list[tuple[str, Any]]:
    form = {"steps": json.dumps(STEPS), "stream": "true"}
    response = client.post("/v1/analyze", data=form, files={"image": image})
    return parse_events(response.raise_for_status().text)


def shown(document: Any) -> list[tuple[str, int | None, Any]]:
    """Return the texts and the errors of all answers."""
    lines = []
    for step in document["steps"]:
        lines += [line(step["id"], answer) for answer in step["answers"]]
    return lines


def line(step_id: str, answer: Any) -> tuple[str, int | None, Any]:
    return step_id, answer.get("of"), answer.get("raw_text", answer.get("error"))
