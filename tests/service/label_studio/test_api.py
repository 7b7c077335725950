import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest
from prometheus_client import REGISTRY

from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.export_cli import ROOT
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    PALIGEMMA_ID,
    PNG,
    data_url,
    make_core,
)
from tests.support.label_studio_config import basic_auth, labelled, view
from tests.support.rest_client import Client, client, error_of
from wire.runner_messages import Failed

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests/support/label_studio_requests.json").read_text(encoding="utf-8")
)
PROMPT = '<TextArea name="prompt" toName="image"/>'
LABEL_STUDIO = {"User-Agent": "heartex/1.23.2"}


PATH = "/integrations/label-studio"
VERSIONS = [f"{FLORENCE_ID}@00000000", f"{PALIGEMMA_ID}@00000000"]
RED_CIRCLE = view(labelled("RectangleLabels", "red circle"))
CAPTION = '<TextArea name="caption" toName="image"/>'


def post(
    name: str,
    body: Mapping[str, Any],
    api: Client | None = None,
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    return (api or client()).send("POST", f"{path}/{name}", json=body, headers=headers)


def results(
    config: str,
    *images: object,
    api: Client | None = None,
    path: str = PATH,
    context: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Return the results of a call for tasks with these images, or one with a good image."""
    tasks = [
        {"id": number, "data": {"image": image}}
        for number, image in enumerate(images or [data_url(PNG)])
    ]
    body = {
        "tasks": tasks,
        "project": "1.2",
        "label_config": config,
        "params": {"context": context},
    }
    response = post("predict", body, api, path)
    assert response.status_code == 200, response.text
    answers: list[Any] = response.json()["results"]
    assert len(answers) == len(tasks)
    return answers


def values(regions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(region["from_name"], region["type"], region["value"]) for region in regions]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests_are_answered(name: str) -> None:
    recorded = RECORDED[name]
    keys = api_keys("secret")
    response = client(keys=keys).send(
        recorded["method"],
        recorded["path"],
        headers=recorded["headers"],
        json=recorded["body"],
        follow_redirects=True,
    )
    answers = {
        "health": {"status": "UP", "model_class": "Diptych"},
        "setup": {"model_version": VERSIONS[0]},
        "versions": {"versions": VERSIONS},
        "event": {"status": "ok"},
    }
    if name == "train":
        assert error_of(response)["code"] == "unsupported_task"
        return
    assert response.status_code == 200, response.text
    if name == "predict":
        assert [item["model_version"] for item in response.json()["results"][0]] == VERSIONS
    elif name == "prompt":
        (prediction,) = response.json()["results"]
        assert [item["from_name"] for item in prediction["result"]] == ["box"]
    else:
        assert response.json() == answers[name]


def test_models_predict_side_by_side() -> None:
    ((first, second),) = results(RED_CIRCLE)
    assert [first["model_version"], second["model_version"]] == VERSIONS
    assert first["result"][0]["value"]["x"] == pytest.approx(
        second["result"][0]["value"]["x"], abs=0.5
    )
    assert first["score"] == pytest.approx(first["result"][0]["score"])


def test_path_of_a_model() -> None:
    ((prediction,),) = results(RED_CIRCLE, path=f"{PATH}/{PALIGEMMA_ID}")
    assert prediction["model_version"] == VERSIONS[1]
    assert (
        error_of(post("setup", {"schema": RED_CIRCLE}, path=f"{PATH}/other"))["code"]
        == "unknown_model"
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([CAPTION], [("caption", "textarea", {"text": ["a red circle"]})]),
        (
            ['<TextArea name="t" toName="image" model_task="ocr"/>'],
            [("t", "textarea", {"text": ["HELLO"]})],
        ),
        (
            ['<TextArea name="t" toName="image" model_question="what is it?"/>'],
            [("t", "textarea", {"text": ["a circle"]})],
        ),
        (
            [
                labelled(
                    "Choices",
                    "A Circle",
                    "star",
                    name="c",
                    attributes='model_question="what is it?"',
                )
            ],
            [("c", "choices", {"choices": ["A Circle"]})],
        ),
        (
            [labelled("Choices", "red circle", name="c")],
            [("c", "choices", {"choices": ["red circle"]})],
        ),
        ([labelled("Choices", "blue square", name="c")], []),
        (['<TextArea name="t" toName="image" model_task="visual_question_answering"/>'], []),
        ([PROMPT, CAPTION], [("caption", "textarea", {"text": ["a red circle"]})]),
        ([labelled("BrushLabels", "unknown", attributes='smartOnly="true"')], []),
    ],
)
def test_texts_and_choices(tags: list[str], expected: list[tuple[str, str, Any]]) -> None:
    tasks = results(view(*tags), path=f"{PATH}/{FLORENCE_ID}")[0]
    assert values(tasks[0]["result"] if tasks else []) == expected


def test_failed_task_names_its_error() -> None:
    broken, good, blank = results(RED_CIRCLE, "data:image/png;base64,AAAA", data_url(PNG), None)
    assert [item["model_version"] for item in good] == VERSIONS
    assert [(item["result"], item["score"]) for item in broken + blank] == [([], None)] * 2
    assert broken[0]["model_version"].startswith("failed: the image cannot be read")
    assert blank[0]["model_version"] == "failed: the task's image is None; it must be a URL"


def test_temporary_failure_has_no_prediction() -> None:
    failing = FakeDecoder(
        {**FLORENCE_ANSWERS, "What does the image describe?": Failed(code="internal", message="x")}
    )
    api = client(make_core(decoders={FLORENCE_ID: failing}))
    tasks = results(view(CAPTION), data_url(PNG), "data:image/png;base64,AAAA", api=api)
    assert tasks[0] == []
    assert tasks[1][0]["model_version"].startswith("failed: ")


def test_many_tasks_in_few_places() -> None:
    api = client(make_core(max_pending=2))
    tasks = results(RED_CIRCLE, *[data_url(PNG)] * 12, api=api)
    assert len(tasks) == 12
    for task in tasks:
        assert [item["model_version"] for item in task] == VERSIONS


def test_call_ends_at_its_deadline() -> None:
    """A runner that never answers: the call fails as a whole, at its deadline."""

    async def never() -> asyncio.Event:
        return asyncio.Event()

    api = client(
        make_core(
            decoders={FLORENCE_ID: FakeDecoder(FLORENCE_ANSWERS, released=asyncio.run(never()))}
        )
    )
    body = {"tasks": [{"data": {"image": data_url(PNG)}}] * 2, "label_config": RED_CIRCLE}
    response = post("predict", body, api, headers={"X-Deadline-Ms": "300"})
    assert error_of(response)["code"] == "deadline_exceeded"


def test_text_prompt_is_detected() -> None:
    config = view(PROMPT, labelled("RectangleLabels", "any", "red circle"))
    prompt = {"result": [{"type": "textarea", "value": {"text": ["red circle"]}}]}
    (prediction,) = results(config, context=prompt)
    assert prediction["model_version"] == VERSIONS[0]
    assert [item["value"]["rectanglelabels"] for item in prediction["result"]] == [["red circle"]]


def test_text_prompt_is_a_question() -> None:
    config = view(
        PROMPT,
        CAPTION,
        '<TextArea name="answer" toName="image" model_task="visual_question_answering"/>',
    )
    (prediction,) = results(
        config, context={"result": [{"type": "textarea", "value": {"text": ["what is it?"]}}]}
    )
    assert values(prediction["result"]) == [("answer", "textarea", {"text": ["a circle"]})]


def test_drawn_box_is_described() -> None:
    box = {"x": 10.02, "y": 10.02, "width": 80, "height": 80, "rectanglelabels": ["red circle"]}
    prompt = {"result": [{"type": "rectanglelabels", "value": box}]}
    texts = {
        **FLORENCE_ANSWERS,
        "What does the region <loc_100><loc_100><loc_900><loc_900> describe?": "it",
    }
    api = client(make_core(decoders={FLORENCE_ID: FakeDecoder(texts)}))
    (prediction,) = results(
        view(labelled("RectangleLabels", "red circle"), CAPTION), api=api, context=prompt
    )
    assert values(prediction["result"]) == [("caption", "textarea", {"text": ["it"]})]


def test_empty_prompt_has_no_results() -> None:
    assert results(RED_CIRCLE, context={"result": []}) == [
        {"model_version": VERSIONS[0], "result": [], "score": None}
    ]


def test_point_is_refused() -> None:
    context = {"result": [{"type": "keypointlabels", "value": {"x": 1, "y": 2, "width": 0}}]}
    body = {
        "tasks": [{"data": {"image": data_url(PNG)}}],
        "label_config": RED_CIRCLE,
        "params": {"context": context},
    }
    assert "models take no points" in error_of(post("predict", body))["message"]


def test_drawn_box_is_segmented() -> None:
    box = {"x": 10.02, "y": 20.02, "width": 30, "height": 40, "polygonlabels": [{}, [], 5, "b"]}
    region = "What is the polygon mask of region <loc_100><loc_200><loc_400><loc_600>"
    api = client(
        make_core(
            decoders={
                FLORENCE_ID: FakeDecoder({region: "<loc_1><loc_1><loc_9><loc_1><loc_9><loc_9>"})
            }
        )
    )
    context = {"result": [{"type": "rectanglelabels", "value": box}]}
    (prediction,) = results(view(labelled("PolygonLabels", "a", "b")), api=api, context=context)
    assert [item["value"]["polygonlabels"] for item in prediction["result"]] == [["b"]]


def test_setup_refuses_other_tasks() -> None:
    config = view('<Rectangle name="r" toName="image"/>')
    assert post("setup", {"schema": config}).json() == {"model_version": VERSIONS[0]}
    error = error_of(post("setup", {"schema": config}, path=f"{PATH}/{PALIGEMMA_ID}"))
    assert error["code"] == "unsupported_task"
    assert "region_proposal" in error["message"]


def test_error_is_in_the_redirect() -> None:
    response = post("setup", {"schema": "<View/>"}, headers=LABEL_STUDIO)
    assert response.status_code == 303
    location = response.headers["location"]
    assert location.startswith(
        f"{PATH}/failed/400?the+labelling+configuration+has+the+control+tags"
    )
    error = error_of(client().get(location))
    assert error["message"].startswith("the labelling configuration has the control tags []")
    assert client().get(f"{PATH}/failed/999?x").status_code == 400


@pytest.mark.parametrize("password", ["secret", "secret:e30.e30.c2ln", f"secret:{'0' * 40}"])
def test_key_is_the_password(password: str) -> None:
    api = client(keys=api_keys("secret"))
    assert api.get(f"{PATH}/health", headers=basic_auth(password)).status_code == 200
    assert api.get(f"{PATH}/health", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, basic_auth("wrong"), {"Authorization": "Basic ?"}, basic_auth("secret:x")]
)
def test_calls_but_events_need_the_key(headers: dict[str, str]) -> None:
    api = client(keys=api_keys("secret"))
    for method, name in [
        ("GET", "health"),
        ("GET", "versions"),
        ("POST", "setup"),
        ("POST", "predict"),
    ]:
        assert (
            error_of(api.send(method, f"{PATH}/{name}", headers=headers))["code"] == "unauthorized"
        )
    assert post("webhook", {"action": "TASKS_CREATED"}, api, headers=headers).json() == {
        "status": "ok"
    }


def test_health_while_a_runner_starts() -> None:
    api = client(make_core(is_up=False))
    assert error_of(api.get(f"{PATH}/health"))["message"].startswith(FLORENCE_ID)
    assert api.get(f"{PATH}/{PALIGEMMA_ID}/health").status_code == 200


def test_answers_count_for_the_key() -> None:
    labels = {"api": "label_studio", "model": PALIGEMMA_ID, "task": "captioning", "status": "ok"}
    before = REGISTRY.get_sample_value("diptych_requests_total", labels) or 0
    api = client(keys=api_keys("secret", "requests_per_minute=3"))
    body = {"tasks": [{"data": {"image": data_url(PNG)}}], "label_config": view(CAPTION)}
    assert post("predict", body, api, headers=basic_auth("secret")).status_code == 200
    assert REGISTRY.get_sample_value("diptych_requests_total", labels) == before + 1
    assert (
        error_of(api.get(f"{PATH}/versions", headers=basic_auth("secret")))["code"] == "overloaded"
    )


def test_unknown_path_has_an_error() -> None:
    assert "no route for GET" in client().get(f"{PATH}/a/b/c").json()["error"]["message"]


def post_raw(name: str, body: Mapping[str, Any]) -> httpx.Response:
    """Send a body as Python writes it: with lone surrogates, and infinity as a number that is too
    large.
    """
    content = json.dumps(body).replace("Infinity", "1e400")
    return client().send("POST", f"{PATH}/{name}", content=content)


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ({"x": 10**400, "y": 1, "width": 1, "height": 1}, "context.result.x"),
        ({"x": 1, "y": 1e400, "width": 1, "height": 1}, "context.result.y"),
        ({"x": 1, "y": 1, "width": -1e400, "height": 1}, "context.result.width"),
        ({"x": 1, "y": 1, "width": 1, "height": "1"}, "context.result.height"),
        ({"x": 1, "y": 1, "width": 1, "height": True}, "context.result.height"),
        ({"x": 1, "y": 1, "width": 1, "height": 1_000_001}, "context.result.height"),
        ({"x": 1, "y": 1, "width": -1, "height": 1}, "context.result"),
        ({"text": 5}, "context.result.text"),
        ({"text": ["a", 5]}, "context.result.text.1"),
        ({"text": [["a"] * 10]}, "context.result.text.0"),
        ({"text": ["a"] * 101}, "context.result.text"),
        ({"text": ["a" * 5000, "b" * 5000]}, "context.result.text"),
        ({"text": ["\ud800"]}, "params.context.result.0.value.text.0"),
        ("x", "context.result"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_prompt_out_of_range_is_refused(value: object, param: str) -> None:
    context = {"result": [{"type": "rectanglelabels", "value": value}]}
    body = {
        "tasks": [{"data": {"image": data_url(PNG)}}],
        "label_config": view(labelled("PolygonLabels", "a")),
        "params": {"context": context},
    }
    error = error_of(post_raw("predict", body))
    assert (error["code"], error["param"]) == ("invalid_request", param), error


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tasks": [{"id": "\ud800"}], "label_config": RED_CIRCLE}, "tasks.0.id"),
        (
            {"tasks": [{"data": {"image": "/\udfff"}}], "label_config": RED_CIRCLE},
            "tasks.0.data.image",
        ),
        ({"tasks": [{}], "label_config": RED_CIRCLE.replace("red", "\ud800")}, "label_config"),
        ({"tasks": [{}], "label_config": RED_CIRCLE, "project": "\ud800"}, "project"),
        ({"tasks": [{}] * 1001, "label_config": RED_CIRCLE}, "tasks"),
        ({"tasks": [], "label_config": RED_CIRCLE}, "tasks"),
        ({"tasks": [[[]]], "label_config": RED_CIRCLE}, "tasks.0"),
        ({"tasks": [{}]}, "label_config"),
        (
            {
                "tasks": [{}],
                "label_config": view(CAPTION.replace("/>", ' model_score_threshold="1e400"/>')),
            },
            "min_score",
        ),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_invalid_body_is_refused_by_name(body: Mapping[str, Any], param: str) -> None:
    error = error_of(post_raw("predict", body))
    assert (error["code"], error["param"]) == ("invalid_request", param), error


def test_nesting_of_a_body_is_bounded() -> None:
    api = client(values=Settings(max_body_bytes=1_000_000))
    error = error_of(
        post(
            "predict", {"tasks": [{"data": {"a": [[]] * 100_000}}], "label_config": RED_CIRCLE}, api
        )
    )
    assert error["message"] == "the body has more than 100000 lists and objects"


@pytest.mark.parametrize(
    ("config", "code", "reason"),
    [
        (view(labelled("KeyPointLabels", "a")), "invalid_request", "KeyPointLabels"),
        (view(labelled("RectangleLabels", "a;b")), "invalid_request", "without ';'"),
        (
            view('<TextArea name="t" toName="image" model_task="x"/>'),
            "invalid_request",
            "captioning, ocr, visual",
        ),
        (
            view('<TextArea name="t" toName="image" model_detail="x"/>'),
            "invalid_request",
            "short, detailed",
        ),
        (
            view('<TextArea name="t" toName="image" perRegion="true"/>'),
            "invalid_request",
            "needs one of Rectangle",
        ),
        (
            view(labelled("RectangleLabels", "a", attributes='model_score_threshold="x"')),
            "invalid_request",
            "model_score_threshold",
        ),
    ],
)
def test_setup_refuses_a_configuration(config: str, code: str, reason: str) -> None:
    error = error_of(post("setup", {"schema": config}))
    assert (error["code"], reason in error["message"]) == (code, True), error


def test_number_of_predictions_is_limited() -> None:
    brush = labelled("BrushLabels", *map(str, range(250)))
    config = view(labelled("PolygonLabels", *map(str, range(251))), brush)
    error = error_of(post("setup", {"schema": config}))
    assert "needs 501 predictions of an image; the maximum is 500: use few" in error["message"]
    assert error["param"] == "label_config"
    for fitting in (
        view(labelled("RectangleLabels", *map(str, range(1000)))),
        view(labelled("PolygonLabels", *map(str, range(250))), brush),
    ):
        assert post("setup", {"schema": fitting}).status_code == 200
