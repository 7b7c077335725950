"""Sends questions about scenes to a model of a running service over REST, and scores the answers.

Each client handles one scene at a time and sends its questions in order. Answers are yielded in the
order of the scenes, so that scores do not depend on the number of clients.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from export.scenes import Scene
from laboratory.evaluation.scenes import SceneImage, evaluation_scene
from laboratory.questions import Question, questions
from laboratory.scoring import Scorecard, score_answer
from loadtest.processes import ROOT, Launch, free_port, running

Render = Callable[[Scene], SceneImage]  # such as one of `CONDITIONS`

MAX_ATTEMPTS = 60
_MAX_WAIT_S = 10.0
_TIMEOUT_S = 60


@contextmanager
def connected(url: str, num_clients: int) -> Iterator[httpx.Client]:
    """Yield a client with a connection for each of the concurrent requests."""
    limits = httpx.Limits(max_connections=num_clients, max_keepalive_connections=num_clients)
    with httpx.Client(base_url=url, timeout=_TIMEOUT_S, limits=limits, trust_env=False) as client:
        yield client


@contextmanager
def service_process(num_clients: int, **settings: str) -> Iterator[httpx.Client]:
    """Start the service with `settings` (environment) and yield a client once it is ready.

    Its log is build/evaluation.log. Raise `ServerError` if it is never ready.
    """
    port = free_port()
    address = {"DIPTYCH_HOST": "127.0.0.1", "DIPTYCH_PORT": str(port), "DIPTYCH_GRPC_PORT": "0"}
    launch = Launch((sys.executable, "-m", "service"), port, "/readyz", settings | address)
    with (
        running(launch, ROOT / "build" / "evaluation.log"),
        connected(launch.url, num_clients) as client,
    ):
        yield client


def evaluate(
    client: httpx.Client, model_id: str, render: Render, num_scenes: int, num_clients: int = 1
) -> Scorecard:
    """Score the answers of `model_id` to all questions that it offers about `num_scenes` scenes."""
    scorecards = answer_scenes(client, model_id, render, num_scenes, num_clients)
    return sum(scorecards, Scorecard())


def answer_scenes(
    client: httpx.Client, model_id: str, render: Render, num_scenes: int, num_clients: int
) -> Iterator[Scorecard]:
    """Yield the scores of each scene in order.

    Raise RuntimeError if the service answers with an error.
    """
    tasks = offered_tasks(client, model_id)

    def answer_scene(index: int) -> Scorecard:
        scene = evaluation_scene(index)
        image = render(scene)
        scorecard = Scorecard()
        for question in questions(scene):
            if question.task not in tasks:
                continue
            scaled = question.scaled(image.size_wh)
            response = predict(client, model_id, scaled, image, is_constrained=False)
            if response is not None:
                scorecard += score_answer(response.json()["result"], scaled, image.size_wh)
        return scorecard

    with ThreadPoolExecutor(num_clients) as pool:
        yield from pool.map(answer_scene, range(num_scenes))


def served_models(client: httpx.Client) -> Mapping[str, frozenset[str]]:
    """Return the tasks of each served model."""
    response = client.get("/v1/models").raise_for_status()
    return {model["id"]: frozenset(model["tasks"]) for model in response.json()["data"]}


def offered_tasks(client: httpx.Client, model_id: str) -> frozenset[str]:
    """Return the tasks of a served model; raise ValueError if the model is not served."""
    served = served_models(client)
    if model_id not in served:
        raise ValueError(f"{model_id} is not served; served models: {', '.join(served)}")
    return served[model_id]


def predict(
    client: httpx.Client, model_id: str, question: Question, image: SceneImage, is_constrained: bool
) -> httpx.Response | None:
    """Return the response, or None if the model does not offer this variant of the task.

    A refused request is repeated after `Retry-After`. Raise RuntimeError on other errors.
    """
    fields = {"model": model_id, "task": question.task, "constrained": json.dumps(is_constrained)}
    for name, value in question.parameters.items():
        fields[name] = json.dumps(value) if isinstance(value, list) else str(value)
    files = {"image": ("scene", image.data, image.media_type)}
    for attempt in range(1, MAX_ATTEMPTS + 1):
        response = client.post("/v1/predict", data=fields, files=files)
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS or attempt == MAX_ATTEMPTS:
            break
        time.sleep(min(float(response.headers.get("Retry-After", 1)), _MAX_WAIT_S))
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        return None
    if response.is_error:
        raise RuntimeError(
            f"{model_id} answered {question.name} with {response.status_code}: {response.text}"
        )
    return response
