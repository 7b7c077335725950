"""Calls to engines of OpenAI's protocol: scripted servers that answer, refuse, break and lie."""

import asyncio
import io
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from PIL import Image

from service.admission.api_keys import ApiKeys
from service.errors import ServiceError
from service.images.fetching import ImageFetcher
from service.inference.core import Core, CoreLimits
from service.inference.engine_calls import EngineClient
from service.inference.models import EngineModel, ModelClients, ServedModels
from service.inference.prediction import Answer, Piece
from service.inference.served_models import engine_model
from service.outbound.messages import Call, CallError, Event, ResponseHead
from service.outbound.program import DirectCalls
from service.rpc.proto import vision_pb2 as pb
from service.rpc.proto.vision_pb2_grpc import VisionStub
from service.settings import Settings, SettingsError
from service.telemetry.logs import TextLines
from tasks.catalog import parse_entry
from tasks.results import DetectionsResult
from tasks.scores import Calibration
from tests.support.fake_service import FLORENCE_ID, PNG, context, make_core
from tests.support.http_servers import Handler, serving
from tests.support.image_files import encoded
from tests.support.rest_client import OCR, client, error_of, grpc_channel
from tests.support.waiting import wait_until

KEY = "sk-very-secret"
BOXES = '[{"bbox_2d": [100, 200, 500, 600], "label": "cat"}]'
BIG_TOKEN = {"token": "x", "bytes": 10**12, "logprob": -1}  # its bytes are no list
JSON = {"Content-Type": "application/json"}
FIND: dict[str, Any] = {"task": "open_vocabulary_detection", "labels": ["cat"]}
Script = Callable[["Engine"], None]


class Engine(Handler):
    """Answers each request as the next of `scripts` says, the last again and again."""

    protocol_version = "HTTP/1.1"
    scripts: list[Script]
    bodies: list[dict[str, Any]]

    def do_GET(self) -> None:
        self.scripts[0](self)

    def do_POST(self) -> None:
        self.bodies.append(json.loads(self.body()) | {"key": self.headers["Authorization"]})
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        script(self)


def chunk(**choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, **choice}]}


def event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def stream(*chunks: Mapping[str, Any], is_cut: bool = False) -> Script:
    """Return what sends chunks as server-sent events; a cut stream ends too early."""
    body = b"".join(map(event, chunks)) + b"data: [DONE]\n\n"
    headers = {"Content-Type": "text/event-stream"}
    if is_cut:
        headers["Content-Length"] = str(len(body) + 1)

    def send(engine: Engine) -> None:
        engine.send(200, body, headers)
        engine.close_connection = is_cut

    return send


def text_stream(text: str, logprob: float | None = None, end: str = "") -> Script:
    """Return what sends each character as a token; `end` is a token outside the text."""
    chunks = []
    for character in text:
        token = {"token": character, "logprob": logprob, "bytes": list(character.encode())}
        logprobs = None if logprob is None else {"content": [token]}
        chunks.append(chunk(delta={"content": character}, logprobs=logprobs))
    if end:
        chunks.append(chunk(delta={}, logprobs={"content": [{"token": end, "logprob": -0.5}]}))
    usage = {"usage": {"prompt_tokens": 70, "completion_tokens": len(text)}, "choices": []}
    return stream(*chunks, chunk(delta={}, finish_reason="stop"), usage)


def status(code: int, text: str = "", **headers: str) -> Script:
    return lambda engine: engine.send(code, text.encode(), headers)


LONG_CHUNK = chunk(delta={"content": "x" * 4000}, finish_reason="stop")


@contextmanager
def engine_core(*scripts: Script, **fields: Any) -> Iterator[tuple[Core, type[Engine]]]:
    engine = type("Scripted", (Engine,), {"scripts": list(scripts), "bodies": []})
    with serving(engine) as url:
        row = {"id": "far", "family": "openai", "url": f"{url}/v1", "model": "org/m"}
        entry = parse_entry({**row, "dialect": "qwen3-vl", **fields})
        assert entry.engine is not None
        settings = Settings()
        calls = DirectCalls()
        client = EngineClient("far", entry.engine, calls)
        models = ServedModels({"far": engine_model(entry, entry.engine, settings)})
        limits = CoreLimits.from_settings(settings)
        clients = ModelClients(engines={"far": client})
        yield Core(models, clients, limits, ImageFetcher([], 0, calls)), engine


async def close(core: Core) -> None:
    assert core.fetcher is not None
    assert isinstance(core.fetcher.calls, DirectCalls)
    await core.fetcher.calls.close()


def asked(core: Core, image: bytes = PNG, timeout_s: float = math.inf, **fields: Any) -> Answer:
    async def ask() -> Answer:
        try:
            return await core.predict(image, FIND | fields, context(timeout_s=timeout_s))
        finally:
            await close(core)

    return asyncio.run(ask())


def failure(core: Core, **options: Any) -> ServiceError:
    with pytest.raises(ServiceError) as raised:
        asked(core, **options)
    return raised.value


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_boxes_have_scores_of_their_tokens(end: str) -> None:
    with engine_core(text_stream(BOXES, logprob=-0.01, end=end)) as (core, engine):
        answer = asked(core)
    assert isinstance(answer.result, DetectionsResult)
    (detection,) = answer.result.detections
    width, height = answer.image_size_wh
    assert detection.box == pytest.approx((0.1 * width, 0.2 * height, 0.5 * width, 0.6 * height))
    # the label's three characters, and the mean of the locations
    assert detection.score == round(math.exp(-0.04), 4)
    usage = answer.written.usage
    assert (usage.prompt_tokens, usage.generated_tokens) == (70, len(BOXES))
    (body,) = engine.bodies
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert '"cat"' in text["text"]
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["items"]["properties"]["label"]["enum"] == ["cat"]
    assert (body["model"], body["stream"], body["key"]) == ("org/m", True, None)


@pytest.mark.parametrize("logprob", [None, math.nan])
def test_without_probabilities_scores_are_null(logprob: float | None) -> None:
    with engine_core(text_stream(BOXES, logprob), text_stream(BOXES, -0.01)) as (core, _):
        fitted = Calibration("far", "", FIND["task"], (0.0, 1.0), (0.0, 0.5))
        calibrations = {(FIND["task"], False): fitted}
        far = core.models.get("far")
        assert isinstance(far, EngineModel)
        far = replace(far, calibrations=calibrations)
        core.models = ServedModels({"far": far})
        answer = asked(core, min_score=0.5)
        scored = asked(core)
    assert isinstance(answer.result, DetectionsResult)
    assert [detection.score for detection in answer.result.detections] == [None]
    assert (answer.is_calibrated, scored.is_calibrated) == (False, True)


@pytest.mark.parametrize("dialect", ["qwen3-vl", "qwen2.5-vl", "gemma"])
@pytest.mark.parametrize("sign", [1, -1])
def test_probability_beyond_floats_is_none(dialect: str, sign: int) -> None:
    tokens = [{"token": "x", "logprob": sign * 10**400}]
    answer = chunk(delta={"content": "x"}, logprobs={"content": tokens}, finish_reason="stop")
    with engine_core(stream(answer), dialect=dialect) as (core, _):
        assert asked(core).written.sequences[0].logprobs == []


@pytest.mark.parametrize("count", [-5, 10**30, None, math.inf, "7"])
def test_counts_that_cannot_be_are_unknown(count: Any) -> None:
    usage = {"usage": {"prompt_tokens": count, "completion_tokens": count}}
    logprobs = {"content": [{"token": "\u00e9", "logprob": None}]}
    answer = chunk(delta={"content": "\u00e9\ud83d"}, logprobs=logprobs, finish_reason="stop")
    with engine_core(stream(answer | usage)) as (core, _):
        written = asked(core).written
    assert written.text == "\u00e9?"
    assert (written.usage.prompt_tokens, written.usage.generated_tokens) == (0, 1)


def test_engine_that_ignores_stream() -> None:
    whole = {"choices": [{"message": {"content": BOXES}, "finish_reason": "length"}]}
    body = json.dumps(whole, indent=1)
    with engine_core(status(200, body, **JSON)) as (core, _):
        answer = asked(core)
    assert answer.written.text == BOXES
    assert answer.written.finish_reason == "length"


def test_only_upright_jpegs_are_sent_as_they_are() -> None:
    picture = Image.new("RGB", (8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: on its side
    with engine_core(text_stream("a cat")) as (core, engine):
        asked(core, encoded(picture, "JPEG"))
        asked(core, encoded(picture, "JPEG", exif=exif))
    media_types = []
    for body in engine.bodies:
        url = body["messages"][0]["content"][0]["image_url"]["url"]
        media_types.append(url.partition(";")[0])
    assert media_types == ["data:image/jpeg", "data:image/png"]


def test_probabilities_above_one_are_one() -> None:
    with engine_core(text_stream(BOXES, logprob=1000.0)) as (core, _):
        result = asked(core).result
    assert isinstance(result, DetectionsResult)
    assert [detection.score for detection in result.detections] == [1.0]


def test_text_streams() -> None:
    async def pieces(core: Core) -> list[str]:
        fields = {"task": "captioning"}
        events = [event async for event in core.stream(PNG, fields, context())]
        await close(core)
        return [event.text for event in events if isinstance(event, Piece)]

    with engine_core(text_stream("two cats")) as (core, _):
        assert asyncio.run(pieces(core)) == list("two cats")


def test_refused_extras_are_left_out_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = status(422, '{"detail": "logprobs is not supported"}')
    with engine_core(refusal, text_stream(BOXES)) as (core, engine):
        asked(core)
        asked(core)
        client: Any = core.clients.engines["far"]
        assert 0 < client._plain_until_s - time.monotonic() <= 600
        monkeypatch.setattr(client, "_plain_until_s", time.monotonic())
        asked(core)
    with_schema = ["response_format" in body for body in engine.bodies]
    assert with_schema == [True, False, False, True]


def test_refusal_of_the_request() -> None:
    with engine_core(status(400, '{"error": {"message": "image  too\\nlarge"}}')) as (core, _):
        error = failure(core)
        assert error.code == "invalid_request"
        assert error.message == "the engine of far refuses the request: image too large"
    with engine_core(stream({"error": {"message": "no"}})) as (core, _):
        assert failure(core).message.endswith("refuses the request: no")


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        (status(401, KEY), "not_ready", "refuses the operator's key, from FAR_KEY"),
        (status(404), "not_ready", "has no model org/m"),
        (status(302, Location="http://127.0.0.1:1/"), "not_ready", "status 302"),
        (status(500), "not_ready", "status 500"),
        (status(503, **{"Retry-After": "7"}), "overloaded", "retry after 7 s"),
        (status(503, **{"Retry-After": "86400"}), "overloaded", "retry after 60 s"),
        (status(429, **{"Retry-After": "9" * 400}), "overloaded", "retry after 60 s"),
        (status(429, **{"Retry-After": "-1"}), "overloaded", "retry after 5 s"),
        (stream(chunk(delta={"content": "x"})), "not_ready", "broke off"),
        (stream(chunk(delta={"content": "x"}), is_cut=True), "not_ready", "broke off"),
        (stream(chunk(delta={"content": "x" * 5_000_000})), "not_ready", "broke off"),
        (stream(*100 * [LONG_CHUNK]), "not_ready", "broke off"),
        (stream(chunk(delta={"content": "x"}), {"error": "no GPU"}), "not_ready", "answer: no GPU"),
        (stream({"choices": [7]}), "not_ready", "no chat completion"),
        (stream(chunk(logprobs={"content": [BIG_TOKEN]})), "not_ready", "no chat completion"),
        (status(200, '{"error": ' + "[" * 100_000 + "\n"), "not_ready", "no chat completion"),
        (status(200, "[7]", **JSON), "not_ready", "no chat completion"),
        (status(400, "[" * 100_000), "invalid_request", "refuses the request: [[["),
        (status(400, f"bad key {KEY}"), "invalid_request", "bad key [key]"),
    ],
)
def test_failures(script: Script, code: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    with engine_core(script, api_key_env="FAR_KEY") as (core, engine):
        error = failure(core)
    assert (error.code, error.model) == (code, "far")
    assert words in error.message
    assert KEY not in error.message
    assert engine.bodies[0]["key"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (status(401), "refuses the operator's key"),
        (status(302, Location="/elsewhere"), "status 302"),
        (lambda engine: engine.wfile.write(b"garbage\r\n\r\n"), "is not ready"),
        (status(200, "[" + " " * 3_000_000 + '"org/m"]'), ""),
    ],
)
def test_check_at_the_start(
    script: Script, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)

    async def check(core: Core) -> None:
        client: Any = core.clients.engines["far"]
        await client.check()
        assert await core.is_ready(core.models.get("far"))  # its answers alone fail
        await close(core)

    with engine_core(script, api_key_env="FAR_KEY") as (core, _):
        asyncio.run(check(core))
    assert words in caplog.text
    assert bool(caplog.text) == bool(words)
    assert KEY not in caplog.text


def echo_in_header(engine: Engine) -> None:
    head = f"HTTP/1.1 200 OK\r\nA\x01: {engine.headers['Authorization']}\r\n\r\n"
    engine.wfile.write(head.encode())
    engine.close_connection = True


def echo_in_stream(engine: Engine) -> None:
    stream({"error": f"\x1b[2J {engine.headers['Authorization']}"})(engine)


@pytest.mark.parametrize("script", [echo_in_header, echo_in_stream, status(200, KEY, **JSON)])
def test_key_and_control_characters_stay_out_of_the_log(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAR_KEY", KEY)
    with engine_core(script, api_key_env="FAR_KEY") as (core, _), written_log() as log:
        error = failure(core)
        logging.getLogger("service").warning("%s", error.message, exc_info=error)
    assert "the engine of far" in log.getvalue()
    assert KEY not in log.getvalue() + error.message
    assert "\x1b" not in log.getvalue()


@contextmanager
def written_log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(TextLines("%(message)s"))
    logger = logging.getLogger("service")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_broken_connection_is_tried_once_more() -> None:
    def hang_up(engine: Engine) -> None:
        engine.close_connection = True

    with engine_core(hang_up, text_stream(BOXES)) as (core, engine):
        asked(core)
        assert len(engine.bodies) == 2
    with engine_core(hang_up) as (core, engine):
        assert "cannot be reached" in failure(core).message
        assert len(engine.bodies) == 2


class BrokenCalls:
    """Breaks the connection of every call, after some events."""

    def __init__(self, *events: Event) -> None:
        self._events = events
        self.num_calls = 0

    async def run(self, _call: Call, _body: bytes = b"") -> AsyncGenerator[Event, None]:
        self.num_calls += 1
        for event in self._events:
            yield event
        raise CallError("unreachable", "")


@pytest.mark.parametrize(("num_events", "num_calls"), [(1, 2), (2, 1)])
def test_engine_is_not_asked_again_after_text(num_events: int, num_calls: int) -> None:
    events: list[Event] = [ResponseHead(status=200, retry_after_s=0), b"two "]
    calls = BrokenCalls(*events[:num_events])
    with engine_core() as (core, _):
        client: Any = core.clients.engines["far"]
        client._calls = calls
        assert "closed the connection" in failure(core).message
    assert calls.num_calls == num_calls


HALF = "\ud800"  # of a surrogate pair


def half_in_status(engine: Engine) -> None:
    engine.send(400, json.dumps({"error": {"message": f"{HALF} no"}}).encode())


@pytest.mark.parametrize(
    "script",
    [
        half_in_status,
        stream({"error": f"{HALF} no"}),
        stream(chunk(delta={"content": HALF}), {"error": {HALF: HALF}}),
    ],
)
async def test_half_of_a_character_fails_its_model_alone(script: Script) -> None:
    with engine_core(script) as (with_far, _):
        local = make_core()
        models = ServedModels({model.id: model for model in (*local.models, *with_far.models)})
        clients = ModelClients(local.clients.runners, with_far.clients.engines)
        core = Core(models, clients, local.limits, with_far.fetcher)
        steps = [{"id": "text", "task": "ocr", "models": [FLORENCE_ID, "far"]}]
        async with client(core).http({}) as http:
            compared = await http.post("/v1/compare", json=OCR)
            analyzed = await http.post("/v1/analyze", json={"image": OCR["image"], "steps": steps})
            predicted = await http.post("/v1/predict", json={**OCR, "model": "far"})
        async with grpc_channel(core, ApiKeys(None)) as channel:
            vision: Any = VisionStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await vision.Predict(pb.PredictRequest(image=PNG, task="ocr", model="far"))
        await close(with_far)
    *answers, failed = compared.json()["answers"]
    assert [answer["result"] for answer in answers] == [{"text": "HELLO"}] * 2
    first, second = analyzed.json()["steps"][0]["answers"]
    assert (first["result"], second["error"]["code"]) == (
        {"text": "HELLO"},
        failed["error"]["code"],
    )
    assert error_of(predicted)["message"] == failed["error"]["message"]
    assert refused.value.details() == failed["error"]["message"]


def test_deadline_ends_the_connection() -> None:
    closed = []

    def wait(engine: Engine) -> None:
        closed.append(engine.connection.recv(1))

    with engine_core(wait) as (core, engine):
        assert failure(core, timeout_s=0.3).code == "deadline_exceeded"
        # a machine may be too slow to connect before the deadline
        wait_until(lambda: closed or not engine.bodies)
    assert closed == [b""] * len(engine.bodies)


def test_start_without_the_engine_or_its_key(caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": "far", "family": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}
    engine = parse_entry({**row, "dialect": "gemma"}).engine
    assert engine is not None

    async def check() -> None:
        calls = DirectCalls()
        client = EngineClient("far", engine, calls)
        await client.check()
        await calls.close()

    with caplog.at_level(logging.WARNING):
        asyncio.run(check())
    assert "the engine of far is not ready at http://127.0.0.1:1/v1/models" in caplog.text
    with pytest.raises(SettingsError, match="NO_SUCH_KEY, which is not set"):
        EngineClient("far", replace(engine, api_key_env="NO_SUCH_KEY"), DirectCalls())


def test_beams_are_refused() -> None:
    with engine_core(text_stream("")) as (core, _):
        assert failure(core, num_beams=2).param == "num_beams"
