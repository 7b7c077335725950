import asyncio
import json
from typing import Any

import pytest
from prometheus_client import REGISTRY

from tests.support.api_keys import api_keys
from tests.support.export_cli import ROOT
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PALIGEMMA_ID,
    PNG,
    data_url,
    make_core,
)
from tests.support.label_studio_calls import (
    CAPTION,
    PATH,
    RED_CIRCLE,
    VERSIONS,
    post,
    results,
    values,
)
from tests.support.label_studio_config import basic_auth, brush_pixels, labelled, view
from tests.support.rest_client import client, error_of
from wire.runner_messages import Failed

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests/support/label_studio_requests.json").read_text(encoding="utf-8")
)
PROMPT = '<TextArea name="prompt" toName="image"/>'
LABEL_STUDIO = {"User-Agent": "heartex/1.23.2"}


def regions(config: str, path: str = f"{PATH}/{FLORENCE_ID}") -> list[dict[str, Any]]:
    """Return the results of one model for one task, without their ids."""
    (((prediction),),) = results(config, path=path)
    found: list[dict[str, Any]] = prediction["result"]
    for each in found:
        assert each.pop("id")
        assert (each["original_width"], each["original_height"]) == IMAGE_SIZE_WH
        assert each["image_rotation"] == 0
    return found


@pytest.mark.parametrize("name", RECORDED)
def test_requests_of_the_real_tool_are_answered(name: str) -> None:
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
        assert [each["model_version"] for each in response.json()["results"][0]] == VERSIONS
    elif name == "prompt":
        (prediction,) = response.json()["results"]
        assert [each["from_name"] for each in prediction["result"]] == ["box"]
    else:
        assert response.json() == answers[name]


def test_box_is_in_percent_of_the_image_under_its_label() -> None:
    ((from_name, kind, value),) = values(regions(RED_CIRCLE))
    assert (from_name, kind, value.pop("rectanglelabels"), value.pop("rotation")) == (
        "box",
        "rectanglelabels",
        ["red circle"],
        0,
    )
    # Florence-2's bins 100, 200, 500 and 600 stand for their centres, in thousandths.
    assert value == pytest.approx({"x": 10.05, "y": 20.05, "width": 40, "height": 40})


def test_both_models_predict_side_by_side() -> None:
    ((first, second),) = results(RED_CIRCLE)
    assert [first["model_version"], second["model_version"]] == VERSIONS
    assert first["result"][0]["value"]["x"] == pytest.approx(
        second["result"][0]["value"]["x"], abs=0.5
    )
    assert first["score"] == pytest.approx(first["result"][0]["score"])


def test_path_of_a_model_has_its_predictions_alone() -> None:
    ((prediction,),) = results(RED_CIRCLE, path=f"{PATH}/{PALIGEMMA_ID}")
    assert prediction["model_version"] == VERSIONS[1]
    assert (
        error_of(post("setup", {"schema": RED_CIRCLE}, path=f"{PATH}/other"))["code"]
        == "unknown_model"
    )


def test_polygon_has_its_points_in_percent() -> None:
    ((_, kind, value),) = values(regions(view(labelled("PolygonLabels", "red circle"))))
    assert (kind, value["polygonlabels"], value["closed"]) == (
        "polygonlabels",
        ["red circle"],
        True,
    )
    assert value["points"] == [
        pytest.approx(point) for point in ([10.05, 20.05], [50.05, 20.05], [50.05, 60.05])
    ]


def test_brush_mask_is_the_polygon_s_inside() -> None:
    ((_, kind, value),) = values(regions(view(labelled("BrushLabels", "red circle"))))
    assert (kind, value["brushlabels"], value["format"]) == ("brushlabels", ["red circle"], "rle")
    width, height = IMAGE_SIZE_WH
    alpha = brush_pixels(value["rle"], (height, width))[..., 3] == 255
    assert alpha.mean() == pytest.approx(0.4 * 0.4 / 2, abs=0.003)
    assert alpha[height // 4, width * 45 // 100]
    assert not alpha[height // 2, width // 5]


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
    found = results(view(*tags), path=f"{PATH}/{FLORENCE_ID}")[0]
    assert values(found[0]["result"] if found else []) == expected


@pytest.mark.parametrize(
    ("shape", "label", "types"),
    [
        ('<Rectangle name="shape" toName="image"/>', "", ["rectangle", "textarea"]),
        (
            '<Polygon name="shape" toName="image"/>',
            labelled("Labels", "Text", "Other", name="label"),
            ["polygon", "labels", "textarea"],
        ),
        (labelled("RectangleLabels", "Text", name="shape"), "", ["rectanglelabels", "textarea"]),
    ],
)
def test_located_text_is_one_region_with_shape_label_and_text(
    shape: str, label: str, types: list[str]
) -> None:
    (((prediction),),) = results(
        view(shape, label, '<TextArea name="text" toName="image" perRegion="true"/>')
    )
    assert [each["type"] for each in prediction["result"]] == types
    assert len({each["id"] for each in prediction["result"]}) == 1
    assert prediction["result"][-1]["value"]["text"] == ["HI"]
    labels = [
        each["value"][each["type"]]
        for each in prediction["result"]
        if each["type"] in each["value"]
    ]
    assert labels == ([["Text"]] if "abels" in "".join(types) else [])


def test_failed_task_gets_a_prediction_that_names_the_error_and_the_others_their_own() -> None:
    broken, good, blank = results(RED_CIRCLE, "data:image/png;base64,AAAA", data_url(PNG), None)
    assert [each["model_version"] for each in good] == VERSIONS
    assert [(each["result"], each["score"]) for each in broken + blank] == [([], None)] * 2
    assert broken[0]["model_version"].startswith("failed: the image cannot be read")
    assert blank[0]["model_version"] == "failed: the task's image is None; it must be a URL"


def test_task_that_failed_for_now_gets_no_prediction_and_can_be_sent_again() -> None:
    failing = FakeDecoder(
        {**FLORENCE_ANSWERS, "What does the image describe?": Failed(code="internal", message="x")}
    )
    api = client(make_core(decoders={FLORENCE_ID: failing}))
    found = results(view(CAPTION), data_url(PNG), "data:image/png;base64,AAAA", api=api)
    assert found[0] == []
    assert found[1][0]["model_version"].startswith("failed: ")


def test_many_tasks_need_no_more_places_than_there_are() -> None:
    api = client(make_core(max_pending=2))
    found = results(RED_CIRCLE, *[data_url(PNG)] * 12, api=api)
    assert len(found) == 12
    for task in found:
        assert [each["model_version"] for each in task] == VERSIONS


def test_call_ends_before_its_deadline_with_the_tasks_that_are_done() -> None:
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


def test_image_that_is_no_text_is_refused_for_its_task_alone() -> None:
    broken, good = results(RED_CIRCLE, ["/data/a.png"], data_url(PNG))
    assert broken[0]["model_version"] == "failed: the task's image is None; it must be a URL"
    assert [each["model_version"] for each in good] == VERSIONS


def test_setup_refuses_tasks_that_its_model_does_not_offer() -> None:
    config = view('<Rectangle name="r" toName="image"/>')
    assert post("setup", {"schema": config}).json() == {"model_version": VERSIONS[0]}
    error = error_of(post("setup", {"schema": config}, path=f"{PATH}/{PALIGEMMA_ID}"))
    assert error["code"] == "unsupported_task"
    assert "region_proposal" in error["message"]


def test_error_is_in_the_url_that_label_studio_shows() -> None:
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
def test_key_is_the_password_of_basic_authentication(password: str) -> None:
    api = client(keys=api_keys("secret"))
    assert api.get(f"{PATH}/health", headers=basic_auth(password)).status_code == 200
    assert api.get(f"{PATH}/health", headers={"Authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize(
    "headers", [{}, basic_auth("wrong"), {"Authorization": "Basic ?"}, basic_auth("secret:x")]
)
def test_every_call_but_an_event_needs_the_key(headers: dict[str, str]) -> None:
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


def test_health_is_an_error_while_a_runner_starts() -> None:
    api = client(make_core(is_up=False))
    assert error_of(api.get(f"{PATH}/health"))["message"].startswith(FLORENCE_ID)
    assert api.get(f"{PATH}/{PALIGEMMA_ID}/health").status_code == 200


def test_each_answer_counts_as_a_request_of_the_key_and_of_the_interface() -> None:
    labels = {"api": "label_studio", "model": PALIGEMMA_ID, "task": "captioning", "status": "ok"}
    before = REGISTRY.get_sample_value("diptych_requests_total", labels) or 0
    api = client(keys=api_keys("secret", "requests_per_minute=3"))
    body = {"tasks": [{"data": {"image": data_url(PNG)}}], "label_config": view(CAPTION)}
    assert post("predict", body, api, headers=basic_auth("secret")).status_code == 200
    assert REGISTRY.get_sample_value("diptych_requests_total", labels) == before + 1
    assert (
        error_of(api.get(f"{PATH}/versions", headers=basic_auth("secret")))["code"] == "overloaded"
    )


def test_unknown_path_has_an_error_of_the_service() -> None:
    assert "no route for GET" in client().get(f"{PATH}/a/b/c").json()["error"]["message"]
