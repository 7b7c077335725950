"""One analysis over the running service has the tokens of single calls, over all interfaces."""

import io
from typing import Any

import httpx
from PIL import Image

from diptych_client import Analysis, Client
from service.rpc.proto import vision_pb2 as pb
from tests.support.export_cli import EMBEDDED
from tests.support.running_service import RunningService, post_form
from tests.support.scene_images import scene_png

PALIGEMMA = "paligemma-mini"
SCENES = [scene_png(seed, (640, 480)) for seed in (3, 11, 12)]
EACH: dict[str, Any] = {"each": "things"}
CROP = EACH | {"view": "crop"}
STEPS: list[dict[str, Any]] = [
    {"id": "things", "task": "object_detection"},
    EACH | {"id": "what", "task": "region_description"},
    EACH | {"id": "category", "task": "region_description", "detail": "category"},
    EACH | {"id": "outline", "task": "instance_segmentation"},
    EACH | {"id": "mask", "task": "instance_segmentation", "phrase": "{label}", "model": PALIGEMMA},
    CROP | {"id": "close", "task": "captioning", "models": [*EMBEDDED]},
    CROP
    | {
        "id": "asked",
        "task": "visual_question_answering",
        "question": "what colour is the {label}?",
        "model": PALIGEMMA,
    },
    {"id": "all", "task": "captioning", "detail": "detailed", "models": [*EMBEDDED]},
]


def analyze(client: httpx.Client, image: bytes) -> Any:
    response = post_form(client, "/v1/analyze", image, {"steps": STEPS})
    assert response.is_success, response.text
    return response.json()


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
    response = post_form(client, "/v1/predict", image, fields)
    assert response.is_success, response.text
    return response.json()


def test_answers_have_the_tokens_of_single_calls(client: httpx.Client) -> None:
    num_compared = 0
    for image in SCENES:
        document = analyze(client, image)
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


def texts(analysis: Analysis) -> list[tuple[str, int | None, str]]:
    lines = []
    for step in analysis.steps:
        for answer in step.answers:
            outcome: Any = answer.outcome
            lines.append((step.id, answer.of, outcome.raw_text))
    return lines


def test_client_has_equal_analyses(service: RunningService) -> None:
    image = SCENES[0]
    with Client(service.url) as rest, Client(f"grpc://{service.grpc_address}") as over_grpc:
        expected = texts(rest.analyze(image, STEPS))
        assert texts(over_grpc.analyze(image, STEPS)) == expected
        with rest.image(image) as stored, service.vision() as vision:
            assert stored.id is not None
            assert texts(rest.analyze(stored, STEPS)) == expected
            step = pb.Step(id="a", task="ocr")
            request = pb.AnalyzeRequest(image=stored.id.encode(), steps=[step])
            events = [event.WhichOneof("event") for event in vision.AnalyzeStream(request)]
    assert events == ["answer", "analysis"]
