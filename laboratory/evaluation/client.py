"""Sends questions about scenes to a model of a running service over REST, and scores the answers.

Each client handles one scene at a time and sends its questions in order. Answers are yielded in the
order of the scenes, so that scores do not depend on the number of clients.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from export.scenes import Question, Scene, Scorecard, questions, sample_scene, score_answer
from laboratory.evaluation.conditions import Rendering, SceneImage

FIRST_SEED = 900_000_000  # training uses smaller seeds only
NO_OBJECT_EVERY = 10
MAX_ATTEMPTS = 60
MAX_WAIT_S = 10.0


def evaluate(
    client: httpx.Client, model_id: str, rendering: Rendering, num_scenes: int, num_clients: int = 1
) -> Scorecard:
    """Score the answers of `model_id` to all questions that it offers about `num_scenes` scenes."""
    scorecards = answer_scenes(client, model_id, rendering, num_scenes, num_clients)
    return sum(scorecards, Scorecard())


def answer_scenes(
    client: httpx.Client, model_id: str, rendering: Rendering, num_scenes: int, num_clients: int
) -> Iterator[Scorecard]:
    """Yield the scores of each scene in order.

    Raise RuntimeError if the service answers with an error.
    """
    offered = offered_tasks(client, model_id)

    def answer_scene(index: int) -> Scorecard:
        scene = evaluation_scene(index)
        asked = [question for question in questions(scene) if question.task in offered]
        return answer_questions(client, model_id, rendering(scene), asked, score_answer)

    with ThreadPoolExecutor(num_clients) as pool:
        yield from pool.map(answer_scene, range(num_scenes))


def answer_questions(
    client: httpx.Client,
    model_id: str,
    image: SceneImage,
    asked: Iterable[Question],
    score: Callable[[Mapping[str, Any], Question, tuple[int, int]], Scorecard],
) -> Scorecard:
    """Return the scores of the answers to questions about one image."""
    scorecard = Scorecard()
    for question in asked:
        scaled = question.scaled(image.size_wh)
        response = predict(client, model_id, scaled, image, is_constrained=False)
        if response is not None:
            scorecard += score(response.json()["result"], scaled, image.size_wh)
    return scorecard


def evaluation_scene(index: int) -> Scene:
    """Return the scene with this index; every tenth has no object, and half of all have no word."""
    has_no_object = index % NO_OBJECT_EVERY == NO_OBJECT_EVERY - 1
    return sample_scene(FIRST_SEED + index, num_objects=0 if has_no_object else None)


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

    Raise RuntimeError on errors.
    """
    parameters = {
        name: json.dumps(value) if isinstance(value, list) else value
        for name, value in question.parameters.items()
    }
    fields = {
        "model": model_id,
        "task": question.task,
        "constrained": json.dumps(is_constrained),
        **parameters,
    }
    response = _post(client, fields, image)
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        return None
    if response.is_error:
        raise RuntimeError(
            f"{model_id} answered {question.name} with {response.status_code}: {response.text}"
        )
    return response


def _post(client: httpx.Client, fields: Mapping[str, str], image: SceneImage) -> httpx.Response:
    """Send the request; repeat it after `Retry-After` while the service is overloaded."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        response = client.post(
            "/v1/predict", data=fields, files={"image": ("scene", image.data, image.media_type)}
        )
        if response.status_code != httpx.codes.TOO_MANY_REQUESTS or attempt == MAX_ATTEMPTS:
            break
        time.sleep(min(float(response.headers.get("Retry-After", 1)), MAX_WAIT_S))
    return response
