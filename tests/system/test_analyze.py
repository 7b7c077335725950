"""One analysis over the running service has the tokens of single calls, over all interfaces."""

import io
from typing import Any

import httpx
from PIL import Image

from diptych_client import Client
from tests.support.export_cli import EMBEDDED
from tests.support.running_service import RunningService, post_form
from tests.support.scene_images import scene_png

PALIGEMMA = "paligemma-mini"
SCENES = [scene_png(seed, (640, 480)) for seed in (3, 11, 12)]
EACH: dict[str, Any] = {"each": "things"}
CROP = EACH | {"view": "crop"}
ASK = {"task": "visual_question_answering", "model": PALIGEMMA}
STEPS: list[dict[str, Any]] = [
    {"id": "things", "task": "object_detection"},
    EACH | {"id": "what", "task": "region_description"},
    EACH | {"id": "outline", "task": "instance_segmentation"},
    EACH | {"id": "mask", "task": "instance_segmentation", "phrase": "{label}", "model": PALIGEMMA},
    CROP | {"id": "close", "task": "captioning", "models": [*EMBEDDED]},
    CROP | ASK | {"id": "asked", "question": "what colour is the {label}?"},
    {"id": "all", "task": "captioning", "detail": "detailed", "models": [*EMBEDDED]},
]


def single_answer(
    client: httpx.Client, image: bytes, step: dict[str, Any], answer: Any, things: Any
) -> Any:
    """Return the answer of the single call that an answer of an analysis stands for."""
    fields = {name: step[name] for name in step.keys() - {"id", "each", "view", "models"}}
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
            fields["region"] = thing["box"]
    return post_form(client, "/v1/predict", image, fields).raise_for_status().json()


def test_answers_have_the_tokens_of_single_calls(client: httpx.Client) -> None:
    num_compared = 0
    for image in SCENES:
        response = post_form(client, "/v1/analyze", image, {"steps": STEPS})
        document = response.raise_for_status().json()
        things = document["steps"][0]["answers"][0]["result"]["detections"]
        assert things
        for step, answered in zip(STEPS, document["steps"], strict=True):
            num_subjects = len(things) if "each" in step else 1
            assert len(answered["answers"]) == num_subjects * len(step.get("models", [""]))
            for answer in answered["answers"]:
                alone = single_answer(client, image, step, answer, things)
                assert answer["raw_text"] == alone["raw_text"], (step, answer, alone)
                for name in ("generated_tokens", "prompt_tokens"):
                    assert answer["usage"][name] == alone["usage"][name]
                num_compared += 1
    assert num_compared > 40


def texts(step: Any) -> list[tuple[int | None, str]]:
    return [(answer.of, answer.outcome.raw_text) for answer in step.answers]


def test_client_has_equal_analyses(service: RunningService) -> None:
    image = SCENES[0]
    with Client(service.url) as rest, Client(f"grpc://{service.grpc_address}") as over_grpc:
        expected = list(map(texts, rest.analyze(image, STEPS).steps))
        assert list(map(texts, over_grpc.analyze(image, STEPS).steps)) == expected
        with rest.image(image) as stored:
            assert list(map(texts, rest.analyze(stored, STEPS).steps)) == expected
