import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from service.admission.api_keys import ApiKeys
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.http.body import parsed_bytes
from service.images.fetching import ImageFetcher
from service.inference.core import Core
from service.label_studio.api import Batch, LabelStudioHost, TaskImages, questions_of
from service.outbound.program import DirectCalls
from service.outbound.urls import AllowedHost
from service.settings import Settings
from tests.service.label_studio.test_mapping import labelled, view
from tests.support.api_keys import api_keys
from tests.support.export_cli import ROOT
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import (
    FLORENCE_ANSWERS,
    FLORENCE_ID,
    IMAGE_SIZE_WH,
    PALIGEMMA_ID,
    PNG,
    context,
    data_url,
    encoded,
    make_core,
    until,
)
from tests.support.image_hosts import ImageHost, Names, listening, redirect, response
from tests.support.rest_client import Client, client, error_of
from wire.runner_channel import RunnerUnreachable
from wire.runner_messages import Failed

RECORDED: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "tests/support/label_studio_requests.json").read_text(encoding="utf-8")
)
PROMPT = '<TextArea name="prompt" toName="image"/>'
LABEL_STUDIO = {"User-Agent": "heartex/1.23.2"}


PATH = "/integrations/label-studio"
MODEL_PATH = f"{PATH}/{FLORENCE_ID}"
VERSIONS = [f"{FLORENCE_ID}@00000000", f"{PALIGEMMA_ID}@00000000"]
RED_CIRCLE = view(labelled("RectangleLabels", "red circle"))
CAPTION = '<TextArea name="caption" toName="image"/>'


def basic_auth(password: str) -> dict[str, str]:
    credentials = base64.b64encode(f"diptych:{password}".encode()).decode()
    return {"Authorization": f"Basic {credentials}"}


def post(
    name: str,
    body: Mapping[str, Any],
    api: Client | None = None,
    path: str = PATH,
    headers: Mapping[str, str] | None = None,
) -> httpx.Response:
    return (api or client()).send("POST", f"{path}/{name}", json=body, headers=headers)


def results(
    config: str, *images: object, api: Client | None = None, path: str = PATH, **context: Any
) -> list[Any]:
    """Return the results of a call for tasks with these images, or one with a good image."""
    tasks: list[dict[str, Any]] = []
    for number, image in enumerate(images or [data_url(PNG)]):
        tasks.append({"id": number, "data": {"image": image}})
    body: dict[str, Any] = {"tasks": tasks, "project": "1.2", "label_config": config}
    response = post("predict", body | {"params": {"context": context or None}}, api, path)
    assert response.status_code == 200, response.text
    answers: list[Any] = response.json()["results"]
    assert len(answers) == len(tasks)
    return answers


def florence(answers: Mapping[str, Any], **options: Any) -> Client:
    decoder = FakeDecoder({**FLORENCE_ANSWERS, **answers}, **options)
    return client(make_core(decoders={FLORENCE_ID: decoder}))


def values(regions: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Any]]:
    return [(region["from_name"], region["type"], region["value"]) for region in regions]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_requests_are_answered(name: str) -> None:
    recorded = RECORDED[name]
    fields = {key: recorded[key] for key in ("method", "path", "headers")}
    api = client(keys=api_keys("secret"))
    response = api.send(**fields, json=recorded["body"], follow_redirects=True)
    if name == "train":
        assert error_of(response)["code"] == "unsupported_task"
    elif name == "predict":
        assert [item["model_version"] for item in response.json()["results"][0]] == VERSIONS
    elif name == "prompt":
        (prediction,) = response.json()["results"]
        assert [item["from_name"] for item in prediction["result"]] == ["box"]
    else:
        answers = {
            "health": {"status": "UP", "model_class": "Diptych"},
            "setup": {"model_version": VERSIONS[0]},
            "versions": {"versions": VERSIONS},
            "event": {"status": "ok"},
        }
        assert response.json() == answers[name]


def text_area(attributes: str) -> str:
    return f'<TextArea name="t" toName="image" {attributes}/>'


def test_failed_task_names_its_error() -> None:
    broken, good, blank = results(RED_CIRCLE, "data:image/png;base64,AAAA", data_url(PNG), None)
    assert [item["model_version"] for item in good] == VERSIONS
    assert [(item["result"], item["score"]) for item in broken + blank] == [([], None)] * 2
    assert broken[0]["model_version"].startswith("failed: the image cannot be read")
    assert blank[0]["model_version"] == "failed: the task's image is None; it must be a URL"


def test_temporary_failure_has_no_prediction() -> None:
    api = florence({"What does the image describe?": Failed(code="internal", message="x")})
    images = (data_url(PNG), "data:image/png;base64,AAAA")
    tasks = results(view(CAPTION), *images, api=api, path=MODEL_PATH)
    assert tasks[0] == []
    assert tasks[1][0]["model_version"].startswith("failed: ")
    ((prediction,), _) = results(view(CAPTION), *images, api=api)  # the other model's
    assert prediction["model_version"] == VERSIONS[1]
    assert prediction["result"]
    down = FakeDecoder({}, failure=RunnerUnreachable("killed"))
    api = client(make_core(decoders={FLORENCE_ID: down, PALIGEMMA_ID: down}))
    call = {"tasks": [{"data": {"image": data_url(PNG)}}], "label_config": view(CAPTION)}
    response = post("predict", call, api)
    assert error_of(response)["code"] == "not_ready"
    assert response.headers["retry-after"] == "1"


def test_many_tasks_in_few_places() -> None:
    api = client(make_core(max_pending=2))
    tasks = results(RED_CIRCLE, *[data_url(PNG)] * 12, api=api)
    assert len(tasks) == 12
    for task in tasks:
        assert [item["model_version"] for item in task] == VERSIONS


def test_call_ends_at_its_deadline() -> None:
    """A runner that never answers: the call fails as a whole, at its deadline."""
    body = {"tasks": [{"data": {"image": data_url(PNG)}}] * 2, "label_config": RED_CIRCLE}
    api = florence({}, released=asyncio.Event())
    response = post("predict", body, api, headers={"X-Deadline-Ms": "300"})
    assert error_of(response)["code"] == "deadline_exceeded"


QUESTION = '<TextArea name="q" toName="image" model_question="why?"/>'


@pytest.mark.parametrize(
    ("config", "text", "name", "answer"),
    [
        (
            view(PROMPT, labelled("RectangleLabels", "any", "red circle")),
            "red circle",
            "box",
            {"rectanglelabels": ["red circle"]},
        ),
        (
            view(text_area('model_question="?"').replace('"t"', '"prompt"'), CAPTION, QUESTION),
            "what is it?",
            "q",
            {"text": ["a circle"]},
        ),
    ],
)
def test_prompt_is_answered(config: str, text: str, name: str, answer: dict[str, Any]) -> None:
    context = [{"type": "rectanglelabels"}, {"type": "textarea", "value": {"text": [text]}}]
    (prediction,) = results(config, result=context)
    assert prediction["model_version"] == VERSIONS[0]
    ((tag, _, value),) = values(prediction["result"])
    assert tag == name
    assert answer.items() <= value.items()
    assert results(RED_CIRCLE, result=[])[0]["result"] == []


def test_path_chooses_the_model() -> None:
    config = view('<Rectangle name="r" toName="image"/>')
    assert post("setup", {"schema": config}).json() == {"model_version": VERSIONS[0]}
    error = error_of(post("setup", {"schema": config}, path=f"{PATH}/{PALIGEMMA_ID}"))
    assert error["code"] == "unsupported_task"
    assert "region_proposal" in error["message"]
    ((prediction,),) = results(RED_CIRCLE, path=f"{PATH}/{PALIGEMMA_ID}")
    assert prediction["model_version"] == VERSIONS[1]
    error = error_of(post("setup", {"schema": RED_CIRCLE}, path=f"{PATH}/other"))
    assert error["code"] == "unknown_model"


def test_error_is_in_the_redirect() -> None:
    response = post("setup", {"schema": "<View/>"}, headers=LABEL_STUDIO)
    assert response.status_code == 303
    location = response.headers["location"]
    message = "the labelling configuration has none of the tags"
    assert location.startswith(f"{PATH}/failed/400?{message.replace(' ', '+')}")
    assert error_of(client().get(location))["message"].startswith(message)
    assert client().get(f"{PATH}/failed/503?x").headers["retry-after"] == "1"
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
    calls = (("GET", "health"), ("GET", "versions"), ("POST", "setup"), ("POST", "predict"))
    for method, name in calls:
        error = error_of(api.send(method, f"{PATH}/{name}", headers=headers))
        assert error["code"] == "unauthorized"
    event = post("webhook", {"action": "TASKS_CREATED"}, api, headers=headers)
    assert event.json() == {"status": "ok"}


def test_health_while_a_runner_starts() -> None:
    api = client(make_core(is_up=False))
    assert error_of(api.get(f"{PATH}/health"))["message"].startswith(FLORENCE_ID)
    assert api.get(f"{PATH}/{PALIGEMMA_ID}/health").status_code == 200


def test_answers_count_for_the_key() -> None:
    labels = {"api": "label_studio", "model": PALIGEMMA_ID, "task": "captioning", "status": "ok"}
    before = REGISTRY.get_sample_value("diptych_requests_total", labels) or 0
    api = client(keys=api_keys("secret", "requests_per_minute=3"))
    body = {"tasks": [{"data": {"image": data_url(PNG)}}], "label_config": view(CAPTION)}
    headers = basic_auth("secret")
    assert post("predict", body, api, headers=headers).status_code == 200
    assert REGISTRY.get_sample_value("diptych_requests_total", labels) == before + 1
    assert error_of(api.get(f"{PATH}/versions", headers=headers))["code"] == "overloaded"


INFINITE = view(CAPTION.replace("/>", ' model_score_threshold="1e400"/>'))


def prompted(value: object) -> dict[str, object]:
    return {"params": {"context": {"result": [{"type": "textarea", "value": value}]}}}


def too_many(count: int) -> str:
    brush = labelled("BrushLabels", *map(str, range(250)))
    return view(labelled("PolygonLabels", *map(str, range(count))), brush)


UNSCORED = labelled("RectangleLabels", "a", attributes='model_score_threshold="x"')


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tasks": [[[]]]}, "tasks.0", ""),
        ({"label_config": None}, "label_config", ""),
        ({"label_config": INFINITE}, "min_score", ""),
        (prompted({"x": 1, "y": 1, "width": 1, "height": 1}), "context.result", ""),
        (prompted({"text": 5}), "text", ""),
        (prompted({"text": ["a", 5]}), "text.1", ""),
        (prompted({"text": ["a"] * 101}), "text", ""),
        (prompted({"text": ["a" * 10_001]}), "text.0", ""),
        (prompted("x"), "context.result", ""),
        ({"tasks": [{"data": {"a": [[]] * 100_000}}]}, None, "more than 100000 "),
        ({"tasks": [{"data": dict.fromkeys(range(100_000))}]}, None, "more than 100000 "),
        ({"tasks": [{"data": {"a": [0] * 1_000_000}}]}, None, "more than 1000000 "),
        ({"schema": view(labelled("RectangleLabels", "a;b"))}, "labels", "without ';'"),
        ({"schema": view(text_area('model_task="x"'))}, "label_config", "captioning, ocr, visual"),
        ({"schema": view(text_area('model_detail="x"'))}, "detail", "short, detailed"),
        ({"schema": view(text_area('perRegion="true"'))}, "label_config", "needs one of Rectangle"),
        ({"schema": view(UNSCORED)}, "min_score", "min_score is"),
        ({"schema": too_many(251)}, "label_config", "needs more than 500 predictions of an image"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_invalid_body_is_refused_by_name(
    fields: dict[str, Any], param: str | None, message: str
) -> None:
    name = "setup" if "schema" in fields else "predict"
    body = {"tasks": [{}], "label_config": RED_CIRCLE} | fields
    error = error_of(post(name, body, client(values=Settings(max_body_bytes=4_000_000))))
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert message in error["message"]


def test_many_labels_are_one_prediction_of_each_tag() -> None:
    for fitting in (view(labelled("RectangleLabels", *map(str, range(1000)))), too_many(250)):
        assert post("setup", {"schema": fitting}).status_code == 200


CONFIG = view(labelled("RectangleLabels", "red circle"), CAPTION)
SETTINGS = Settings(max_body_bytes=10_000_000, request_timeout_s=60)


def service(core: Core, keys: ApiKeys | None = None) -> httpx.AsyncClient:
    return client(core, keys, SETTINGS).http(basic_auth("secret") if keys else {})


def body(*images: str) -> dict[str, Any]:
    return {"tasks": [{"data": {"image": image}} for image in images], "label_config": CONFIG}


def num_results(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [len(prediction["result"]) for (prediction,) in response.json()["results"]]


async def test_busy_runner_is_asked_again() -> None:
    busy = Failed(code="overloaded", message="full")
    decoder = FakeDecoder({**FLORENCE_ANSWERS, "What does the image describe?": busy})
    async with service(make_core(decoders={FLORENCE_ID: decoder})) as http:
        calling = asyncio.create_task(http.post(f"{MODEL_PATH}/predict", json=body(data_url(PNG))))
        await until(lambda: len(decoder.specs) == 2)
        decoder.answers = FLORENCE_ANSWERS
        assert num_results(await calling) == [2]


async def test_call_keeps_its_place() -> None:
    released = asyncio.Event()
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=released)
    core = make_core(decoders={FLORENCE_ID: decoder})
    async with service(core, api_keys("secret", "max_concurrent=1")) as http:
        calling = asyncio.create_task(http.post(f"{MODEL_PATH}/predict", json=body(data_url(PNG))))
        await until(lambda: decoder.num_waiting)
        refused = await http.post(f"{MODEL_PATH}/setup", json={"schema": CONFIG})
        assert (refused.status_code, "1 concurrent requests" in refused.text) == (429, True)
        released.set()
        assert num_results(await calling) == [2]
        assert (await http.post(f"{MODEL_PATH}/setup", json={"schema": CONFIG})).status_code == 200


def fetching(host: ImageHost) -> ImageFetcher:
    names = Names({"images.test": ["127.0.0.1"]})
    allowed = [AllowedHost("images.test", host.port)]
    return ImageFetcher(allowed, 1_000_000, DirectCalls(lambda _: True, names), timeout_s=5)


@asynccontextmanager
async def images_by_url(
    decoder: FakeDecoder, max_bytes: int
) -> AsyncIterator[tuple[Core, ImageHost, str]]:
    """Yield a core that fetches images, their host, and the URL of one."""
    async with listening(ImageHost({"/a.png": response(PNG)})) as host:
        decoders = {FLORENCE_ID: decoder}
        core = make_core(decoders=decoders, fetcher=fetching(host), max_bytes=max_bytes)
        yield core, host, f"http://images.test:{host.port}/a.png"


async def test_fetched_images_are_counted() -> None:
    released = asyncio.Event()
    decoder = FakeDecoder(FLORENCE_ANSWERS, released=released)
    async with images_by_url(decoder, 1_000_000) as (core, host, url), service(core) as http:
        calling = asyncio.create_task(http.post(f"{MODEL_PATH}/predict", json=body(*[url] * 6)))
        await until(lambda: decoder.num_waiting == 7)  # of 8 slots
        call = json.dumps(body(*[url] * 6)).encode()
        held = core.places.num_bytes - len(call) - parsed_bytes(call)
        assert held == pytest.approx(4 * len(PNG), abs=100)
        assert len(host.requests) == 4
        released.set()
        assert num_results(await calling) == [2] * 6
        assert core.places.num_bytes == 0


async def outcomes(
    core: Core, *tasks: object, config: str = CONFIG, timeout_s: float = 60
) -> list[bytes]:
    questions = questions_of([core.models.get(FLORENCE_ID)], config, None)
    call = Batch(core, TaskImages(core, None, ""), context(timeout_s=timeout_s))
    return await call.outcomes(tasks, questions)


def test_predictions_are_counted() -> None:
    """A task whose predictions do not fit is tried again with the next call."""

    def predict(num_tasks: int, max_bytes: int) -> list[bytes]:
        tasks = [{"image": data_url(PNG)}] * num_tasks
        return asyncio.run(outcomes(make_core(max_bytes=max_bytes), *tasks))

    (outcome,) = predict(1, 1_000_000)
    lengths = sorted(map(len, predict(3, 3 * len(outcome) // 2)))
    assert lengths == [len(b"[]"), len(b"[]"), len(outcome)]
    with pytest.raises(Overloaded, match="bytes of requests in memory"):
        predict(1, len(outcome) - 1)


def test_tag_has_its_own_image() -> None:
    config = view(
        '<Image name="other" value="$second"/>',
        '<TextArea name="of first" toName="image"/>',
        '<TextArea name="of second" toName="other"/>',
    )
    second = encoded(Image.new("RGB", (100, 50)))
    sources = {"image": data_url(PNG), "second": data_url(second)}
    (outcome,) = asyncio.run(outcomes(make_core(), sources, config=config))
    (prediction,) = json.loads(outcome)
    widths = [(region["from_name"], region["original_width"]) for region in prediction["result"]]
    assert widths == [("of first", IMAGE_SIZE_WH[0]), ("of second", 100)]


LEGACY = "0" * 40
PERSONAL = "e30.e30.c2ln"
EXCHANGED = response(b'{"access": "short"}', "200 OK", "Content-Type: application/json")


async def read(
    source: str | None, answers: Mapping[str, bytes] = {}, token: str = LEGACY, prefix: str = ""
) -> tuple[bytes | ServiceError, list[str]]:
    """Return the image or the error, and the heads of the requests to Label Studio.

    PORT is its port in `source`.
    """
    async with listening(ImageHost(dict(answers))) as host:
        settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}{prefix}/")
        core = make_core(fetcher=fetching(host))
        images = TaskImages(core, LabelStudioHost.of(settings), token)
        url = None if source is None else source.replace("PORT", str(host.port), 1)
        try:
            outcome: bytes | ServiceError = await images.read(url, context(timeout_s=10))
        except ServiceError as error:
            outcome = error
        return outcome, host.requests


def headers_of(request: str) -> dict[str, str]:
    lines = request.split("\r\n")[1:]
    parts = [line.partition(": ") for line in lines]
    return {name.lower(): value for name, _, value in parts if name}


def refusal(outcome: bytes | ServiceError) -> str:
    assert isinstance(outcome, InvalidRequest)
    assert outcome.param == "image"
    assert LEGACY not in outcome.message
    assert PERSONAL not in outcome.message
    return outcome.message


LEGACY_ONLY = [("GET", f"Token {LEGACY}")]
EXCHANGE = [("POST", None), ("GET", "Bearer short")]


@pytest.mark.parametrize(
    ("source", "path", "token", "prefix", "requests"),
    [
        ("/data/upload/1/a b.png", "/data/upload/1/a%20b.png", LEGACY, "", LEGACY_ONLY),
        ("http://127.0.0.1:PORT/data/a%20b.png", "/data/a%20b.png", LEGACY, "", LEGACY_ONLY),
        (
            "/data/local-files/?d=a b/è.png",
            "/data/local-files/?d=a%20b/%C3%A8.png",
            LEGACY,
            "",
            LEGACY_ONLY,
        ),
        ("/data/a.png", "/data/a.png", PERSONAL, "", EXCHANGE),
        ("/ls/data/a.png", "/ls/data/a.png", PERSONAL, "/ls", EXCHANGE),
        ("http://images.test:PORT/a.png", "/a.png", LEGACY, "", [("GET", None)]),
    ],
)
async def test_image_is_fetched_with_the_token_of_its_host(
    source: str, path: str, token: str, prefix: str, requests: list[tuple[str, str | None]]
) -> None:
    answers = {f"{prefix}/api/token/refresh/": EXCHANGED, path: response(PNG)}
    outcome, heads = await read(source, answers, token, prefix)
    assert outcome == PNG
    authorizations = [(head.split()[0], headers_of(head).get("authorization")) for head in heads]
    assert authorizations == requests


@pytest.mark.parametrize("status", ["302 Found", "307 Temporary Redirect"])
async def test_token_exchange_follows_no_redirect(status: str) -> None:
    """A 307 repeats the request with its body, which is the token."""

    async with (
        listening(ImageHost({"/stolen": EXCHANGED})) as other,
        listening(ImageHost()) as host,
    ):
        location = f"Location: http://127.0.0.1:{other.port}/stolen"
        host.answers["/api/token/refresh/"] = response(b"", status, location)
        settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}")
        images = TaskImages(make_core(), LabelStudioHost.of(settings), PERSONAL)
        with pytest.raises(InvalidRequest, match="does not accept the access token"):
            await images.read("/data/a.png", context(timeout_s=10))
        assert (len(host.requests), other.num_connections) == (1, 0)


async def test_token_is_exchanged_once_a_call() -> None:
    answers = {"/api/token/refresh/": EXCHANGED, "/data/a.png": response(PNG)}
    async with listening(ImageHost(answers)) as host:
        settings = Settings(label_studio_url=f"http://127.0.0.1:{host.port}")
        images = TaskImages(make_core(), LabelStudioHost.of(settings), PERSONAL)
        reads = (images.read("/data/a.png", context(timeout_s=10)) for _ in range(3))
        assert await asyncio.gather(*reads) == [PNG] * 3
        assert len(host.requests) == 1 + 3


@pytest.mark.parametrize("access", [None, 5, "", "a\r\nX: y", "ä", "x" * 4097])
async def test_exchanged_token_must_fit_a_header(access: object) -> None:
    answer = json.dumps({"access": access}).encode()
    exchanged = response(answer, "200 OK", "Content-Type: application/json")
    outcome, requests = await read("/data/a.png", {"/api/token/refresh/": exchanged}, PERSONAL)
    assert "does not accept the access token" in refusal(outcome)
    assert len(requests) == 1


async def test_redirect_gets_no_token() -> None:
    outcome, requests = await read("/a.png", {"/a.png": redirect("http://images.test:1/b.png")})
    assert "image is a URL at images.test" in refusal(outcome)
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("source", "token", "reason"),
    [
        ("/data/a.png", "", "no access token of it was sent; enter KEY:TOKEN"),
        ("/data/a.png", "x.y", "no access token of it was sent"),
        ("/data/a.png", PERSONAL, "does not accept the access token"),
        ("/data/a.png", LEGACY, "answers with status 404"),
        ("/" + "a" * 2047, LEGACY, "image must be an http(s) URL"),
        ("//images.test/a.png", LEGACY, "is a file of Label Studio"),
        ("http://elsewhere.test/a.png", LEGACY, "the allowed hosts are images.test"),
        ("s3://bucket/a.png", LEGACY, "image must be an http(s) URL"),
        (None, LEGACY, "the task's image is None"),
        ("/" + "a" * 2048, LEGACY, "the image's path exceeds 2048 characters"),
        ("http://127.0.0.1:PORT/" + "a" * 20_000_000, LEGACY, "path exceeds 2048 characters"),
        ("", LEGACY, "it must be a URL"),
    ],
)
async def test_unreadable_source(source: str | None, token: str, reason: str) -> None:
    outcome, _ = await read(source, token=token)
    assert reason in refusal(outcome)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        (None, "DIPTYCH_LABEL_STUDIO_URL is not set"),
        ("http://127.0.0.1:1", "DIPTYCH_LABEL_STUDIO_URL does not exchange"),
    ],
)
async def test_files_of_label_studio_need_its_url(url: str | None, problem: str) -> None:
    host = LabelStudioHost.of(Settings(label_studio_url=url))
    with pytest.raises(InvalidRequest, match=problem):
        await TaskImages(make_core(), host, PERSONAL).read("/data/a.png", context())
