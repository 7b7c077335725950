"""Label Studio's ML backend protocol over the core, for all served models or for one.

Label Studio shows of a failed call its status and URL, but not its body: it is redirected to a URL
that has the message (GET …/failed/STATUS?MESSAGE), so that its pages show it. It sends basic
authentication, whose password is `KEY` or `KEY:TOKEN`, the API key of this service and an access
token of Label Studio: it shows user names to others.

It sends all selected tasks in one request and stores what it gets. A task that ran out of time or
met a busy service gets no prediction: Label Studio sends it again with the next "Retrieve
Predictions". A task that cannot succeed gets an empty prediction whose version, which Label Studio
shows and filters by, is the error.

A file of Label Studio (`/data/upload/…`, `/data/local-files/?d=…`, `/data/…`) is fetched from the
operator's DIPTYCH_LABEL_STUDIO_URL alone, with the token that came with the request: a user sees
what the token's owner sees, and the token goes nowhere else. Tokens are never stored or logged.

Source: HumanSignal/label-studio label_studio/ml/api_connector.py (requests),
label_studio/ml/models.py (answers), label_studio/jwt_auth (personal tokens are exchanged for short
ones; legacy tokens).
"""

import asyncio
import base64
import binascii
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import quote, quote_plus, unquote_plus, urlsplit

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from service.admission.places import Place, RequestContext
from service.admission.threads import PARSING, POSTPROCESSING
from service.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServiceError
from service.http.body import BodyMemory, json_object, parse_image, parsed, read_bytes
from service.http.boundary import (
    STATUSES,
    Body,
    Interface,
    RestBoundary,
    authorization,
    failure_response,
)
from service.images.fetching import FETCH_TIMEOUT_S
from service.images.inputs import ImageUrl
from service.inference.core import Core
from service.inference.models import ServedModel
from service.inference.prediction import Answer
from service.inference.recording import record_error, record_failure
from service.label_studio.mapping import (
    MAX_CONFIG_CHARS,
    Ask,
    JsonObject,
    image_asks,
    parse_config,
    prediction,
    prompt_asks,
)
from service.outbound.messages import CallError, HttpCall, OutboundCalls, ResponseHead
from service.outbound.urls import MAX_URL_CHARS, AllowedHost
from service.settings import Settings, variable
from service.validation import ModelT, validated
from tasks.errors import shown
from wire.disconnection import while_connected

PREFIX = "/integrations/label-studio"
_MAX_TASKS = 1000
# an interactive call has all annotations of its task, with the bytes of brush masks
MAX_JSON_VALUES = 1_000_000
# lists, objects and names among them: 1,000,000 hold the interpreter's lock for 0.8 s
_MAX_JSON_NESTED = 100_000
_LABEL_STUDIO_AGENT = "heartex/"  # label_studio/ml/api_connector.py
_READABLE = ",;:'()/"
_TRAINING = "START_TRAINING"
MAX_CALL_S = 50  # proxies in front of Label Studio often wait 60 s, Label Studio itself 100 s
_MAX_EXCHANGE_BYTES = 20_000
_MAX_TASKS_IN_FLIGHT = 4  # of one call: their images are in memory
_MAX_ANSWERS_IN_FLIGHT = 12  # of one call; more would only wait in the service's queues
_TEMPORARY = {"overloaded", "not_ready", "deadline_exceeded", "internal"}
_OF_ONE_MODEL = {
    "not_ready",
    "runner_failed",
    "internal",
}  # after the others a task would be sent again

_PORTS = {"http": 80, "https": 443}
_SAFE_IN_PATHS = "/?&=%+,:;@~!$'()*"
_LEGACY_TOKEN = re.compile(r"[0-9a-f]{40}")
_PERSONAL_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)  # a JWT, to be exchanged
_ACCESS_TOKEN = re.compile(r"[!-~]{1,4096}")  # fits in a header
_SETTING = variable("label_studio_url")

_CONFIG: dict[str, JsonValue] = {"maxLength": MAX_CONFIG_CHARS}  # `parse_config` refuses more
# counts all that they hold: `json_object`
_VALUES: dict[str, JsonValue] = {"maxProperties": MAX_JSON_VALUES}
_BOUNDED = Field(json_schema_extra=_VALUES)

BodyT = TypeVar("BodyT")
Question = tuple[ServedModel, Ask]


def _authorization(request: Request) -> str | None:
    key, _ = _credentials(request)
    return f"Bearer {key}" if key else authorization(request)


def _credentials(request: Request) -> tuple[str, str]:
    """Return key and token in the password of basic authentication (RFC 7617); empty: none."""
    scheme, _, encoded = (authorization(request) or "").partition(" ")
    if scheme.lower() != "basic":
        return "", ""
    try:
        credentials = base64.b64decode(encoded.strip(), validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        return "", ""
    password = credentials.partition(":")[2]
    key, _, token = password.rpartition(":")
    return (key, token) if is_token(token) else (password, "")


def _redirected(request: Request, response: Response) -> Response:
    is_failed = response.status_code in STATUSES.values()
    agent = request.headers.get("user-agent", "")
    if request.url.path.startswith(f"{PREFIX}/failed/"):
        return response
    if not (is_failed and agent.startswith(_LABEL_STUDIO_AGENT)):
        return response
    message = json.loads(bytes(response.body))["error"]["message"]
    url = f"{PREFIX}/failed/{response.status_code}?{quote_plus(message, safe=_READABLE)}"
    return RedirectResponse(url, 303, {"X-Request-Id": response.headers["x-request-id"]})


LABEL_STUDIO = Interface("label_studio", PREFIX, authorization=_authorization, respond=_redirected)


class _Body(BaseModel):
    model_config = ConfigDict(json_schema_extra=_VALUES)  # fields that are not read are ignored


class SetupBody(_Body):
    """Body of `setup`."""

    label_config: str = Field(alias="schema", json_schema_extra=_CONFIG)


class PredictParams(_Body):
    """Parameters of a prediction."""

    context: Annotated[dict[str, Any], _BOUNDED] | None = None


class PredictBody(_Body):
    """Body of `predict`."""

    tasks: list[Annotated[dict[str, Any], _BOUNDED]] = Field(min_length=1, max_length=_MAX_TASKS)
    label_config: str = Field(json_schema_extra=_CONFIG)
    params: PredictParams = PredictParams()


class LabelStudioApi:
    """The endpoints of the protocol."""

    def __init__(self, boundary: RestBoundary) -> None:
        self._boundary = boundary
        self._host = LabelStudioHost.of(boundary.settings)

    def routes(self) -> list[Route]:
        route = partial(self._boundary.route, interface=LABEL_STUDIO)
        routes = [route("GET", "/failed/{status}", self.failed, is_public=True)]
        for path in ("", "/{model}"):
            routes += [
                route("GET", f"{path}/health", self.health),
                route("GET", f"{path}/versions", self.versions),
                route("POST", f"{path}/setup", self.setup),
                route("POST", f"{path}/predict", self.predict),
                # events come without the key
                route("POST", f"{path}/webhook", self.webhook, is_public=True),
            ]
        return routes

    async def health(self, request: Request, _context: RequestContext) -> Body:
        core = self._boundary.core()
        await core.check_ready(_models(core, request))
        return {"status": "UP", "model_class": "Diptych"}

    async def failed(self, request: Request, context: RequestContext) -> Body:
        """Repeat the status of a failed call, whose message is in the URL."""
        failed_status = request.path_params["status"]
        codes = [code for code, status in STATUSES.items() if str(status) == failed_status]
        if not codes:
            raise InvalidRequest(f"no call fails with the status {shown(failed_status)}")
        error = ServiceError(unquote_plus(request.url.query), code=codes[0])
        return failure_response(error, context.request_id, LABEL_STUDIO)

    async def versions(self, request: Request, _context: RequestContext) -> Body:
        return {"versions": list(map(version_of, _models(self._boundary.core(), request)))}

    async def setup(self, request: Request, context: RequestContext) -> Body:
        """Return the version of the first model that can fill the labelling configuration.

        Label Studio asks for predictions of a task while it has none of that version.
        """
        models = _models(self._boundary.core(), request)
        setup = await self._read(_parser(SetupBody), request, context)
        questions = await PARSING.run(questions_of, models, setup.label_config, None)
        return {"model_version": _version(models, questions)}

    async def predict(self, request: Request, context: RequestContext) -> Body:
        core = self._boundary.core()
        body = await self._read(_parser(PredictBody), request, context)
        models = _models(core, request)
        prompt = body.params.context
        questions = await PARSING.run(questions_of, models, body.label_config, prompt)
        _, token = _credentials(request)
        batch = Batch(core, TaskImages(core, self._host, token), context)
        data = [task.get("data") for task in body.tasks]
        if prompt is None:
            results = await while_connected(request.receive, batch.outcomes(data, questions))
        else:
            questions = first_questions(questions)
            answering = batch.prompted(data[0], _version(models, questions), questions)
            results = [await while_connected(request.receive, answering)]
        return Response(b'{"results":[' + b",".join(results) + b"]}", media_type="application/json")

    async def webhook(self, request: Request, context: RequestContext) -> Body:
        """Refuse to train; accept other events unread, as they come without the key."""
        if self._boundary.is_authorized(request, LABEL_STUDIO):
            body = await self._read(_json, request, context)
            if body.get("action") == _TRAINING:
                message = "models are not trained from annotations here"
                hint = "see docs/models.md for adapters"
                raise ServiceError(f"{message}; {hint}", code="unsupported_task")
        return {"status": "ok"}

    async def _read(
        self, parse: Callable[[bytes], BodyT], request: Request, context: RequestContext
    ) -> BodyT:
        async def read(request: Request, memory: BodyMemory) -> BodyT:
            return await parsed(parse, await read_bytes(request, memory), memory)

        return await self._boundary.read(read, request, context)


_json = partial(json_object, max_values=MAX_JSON_VALUES, max_nested=_MAX_JSON_NESTED)


def _parser(model: type[ModelT]) -> Callable[[bytes], ModelT]:
    return lambda body: validated(model, _json(body))


def _models(core: Core, request: Request) -> tuple[ServedModel, ...]:
    model_id = request.path_params.get("model")
    return tuple(core.models) if model_id is None else (core.models.get(model_id),)


def _version(models: Sequence[ServedModel], questions: Sequence[Question]) -> str:
    """Return the version of the first model that is asked, or of all if there is none."""
    return version_of(questions[0][0] if questions else models[0])


def questions_of(
    models: Sequence[ServedModel], label_config: str, prompt: Mapping[str, Any] | None
) -> list[Question]:
    """Return what each model is asked; raise `unsupported_task` if none offers any of the tasks."""
    controls = parse_config(label_config)
    asks = image_asks(controls) if prompt is None else prompt_asks(controls, prompt)
    questions: list[Question] = []
    for model, ask in product(models, asks):
        if ask.task in model.entry.task_ids:
            questions.append((model, ask))
    if asks and not questions:
        names = ", ".join(model.id for model in models)
        tasks = ", ".join(sorted({ask.task for ask in asks}))
        problem = f"the labelling configuration needs {tasks}, which {names} does not offer"
        raise ServiceError(problem, "label_config", "unsupported_task")
    return questions


def first_questions(questions: Sequence[Question]) -> list[Question]:
    first: dict[int, Question] = {}
    for model, ask in questions:
        first.setdefault(id(ask), (model, ask))
    return list(first.values())


def version_of(model: ServedModel) -> str:
    return f"{model.id}@{model.version[:8]}"


def is_token(text: str) -> bool:
    return bool(_LEGACY_TOKEN.fullmatch(text) or _PERSONAL_TOKEN.fullmatch(text))


@dataclass(frozen=True, slots=True)
class LabelStudioHost:
    """The operator's Label Studio."""

    url: str  # has no slash at its end
    origin: str
    allowed: AllowedHost

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the operator's host, if one is set; its address may be private."""
        if settings.label_studio_url is None:
            return None
        parts = urlsplit(settings.label_studio_url)
        allowed = AllowedHost(str(parts.hostname), parts.port or _PORTS[parts.scheme])
        url = settings.label_studio_url.rstrip("/")
        return cls(url, f"{parts.scheme}://{parts.netloc}", allowed)

    def path_of(self, source: str) -> str | None:
        """Return the path of a file of this Label Studio, or None for any other source."""
        if source.startswith("/") and not source.startswith("//"):
            return source
        return source.removeprefix(self.origin) if source.startswith(f"{self.origin}/") else None

    async def authorization(self, token: str, calls: OutboundCalls) -> str:
        """Return the header for a user's token; raise `InvalidRequest` if it is not accepted."""
        if _LEGACY_TOKEN.fullmatch(token):
            return f"Token {token}"
        if not is_token(token):
            problem = "the image is a file of Label Studio, and no access token of it was sent"
            advice = "enter KEY:TOKEN as the password of the backend's basic authentication"
            raise InvalidRequest(f"{problem}; {advice}", "image")
        access = await self._exchanged(token, calls)
        if not isinstance(access, str) or not _ACCESS_TOKEN.fullmatch(access):
            raise InvalidRequest("Label Studio does not accept the access token", "image")
        return f"Bearer {access}"

    async def _exchanged(self, token: str, calls: OutboundCalls) -> object:
        call = HttpCall(
            kind="document",
            url=f"{self.url}/api/token/refresh/",
            headers={"Content-Type": "application/json"},
            max_bytes=_MAX_EXCHANGE_BYTES,
            timeout_s=FETCH_TIMEOUT_S,
        )
        sent = json.dumps({"refresh": token}).encode()
        status = 0
        document = b""
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_S), aclosing(calls.run(call, sent)) as events:
                async for event in events:
                    if isinstance(event, ResponseHead):
                        status = event.status
                    elif isinstance(event, bytes):
                        document += event
            return json.loads(document)["access"] if status == 200 else None
        except (CallError, TimeoutError, ValueError, TypeError, LookupError) as error:
            problem = f"Label Studio at {_SETTING} does not exchange the access token"
            raise InvalidRequest(problem, "image") from error


@dataclass(slots=True)
class TaskImages:
    """Reads the images of one call."""

    core: Core
    host: LabelStudioHost | None
    token: str
    authorization: str | None = None
    exchange: asyncio.Lock = field(default_factory=asyncio.Lock)  # the token's, once per call

    async def read(self, source: object, context: RequestContext) -> bytes:
        """Return the image file that a task names; raise `ServiceError`.

        A fetched file is counted in the memory of `context`; a decoded one with its request.
        """
        if not isinstance(source, str) or not source:
            raise InvalidRequest(f"the task's image is {shown(source)}; it must be a URL", "image")
        path = None if self.host is None else self.host.path_of(source)
        if self.host is None or path is None:
            if source.startswith("/"):
                problem = f"the image is a file of Label Studio, and {_SETTING} is not set"
                raise InvalidRequest(problem, "image")
            image = await PARSING.run(parse_image, source)
            return image if isinstance(image, bytes) else await self.core.fetched(image, context)
        if len(path) > MAX_URL_CHARS:
            raise InvalidRequest(f"the image's path exceeds {MAX_URL_CHARS} characters", "image")
        url = ImageUrl(self.host.origin + quote(path, safe=_SAFE_IN_PATHS))
        assert self.core.fetcher is not None, "a gateway has one"
        fetcher = replace(self.core.fetcher, allowed=[self.host.allowed], may_be_private=True)
        authorization = await self._header(self.host, fetcher.calls)
        hold = partial(self.core.places.hold, context)
        return await fetcher.fetch(url, context, hold, authorization)

    async def _header(self, host: LabelStudioHost, calls: OutboundCalls) -> str:
        async with self.exchange:
            if self.authorization is None:
                self.authorization = await host.authorization(self.token, calls)
            return self.authorization


class Batch:
    """The tasks of one call."""

    def __init__(self, core: Core, images: TaskImages, context: RequestContext) -> None:
        self._core = core
        self._images = images
        deadline_s = min(context.deadline_s, time.monotonic() + MAX_CALL_S)
        self._context = replace(context, deadline_s=deadline_s)
        self._answers = asyncio.Semaphore(_MAX_ANSWERS_IN_FLIGHT)

    async def outcomes(self, tasks: Sequence[object], questions: Sequence[Question]) -> list[bytes]:
        """Return the predictions of each task, given by its data, as JSON.

        Raise the first error if every task had a temporary one.
        """
        slots = asyncio.Semaphore(_MAX_TASKS_IN_FLIGHT)

        async def answer(data: object) -> bytes | ServiceError:
            async with slots:
                return await self._outcome(data, questions)

        outcomes = await asyncio.gather(*map(answer, tasks))
        is_temporary = all(map(_is_temporary, outcomes))
        if is_temporary and isinstance(outcomes[0], ServiceError):
            raise outcomes[0]
        return list(map(_rendered, outcomes))

    async def _outcome(self, data: object, questions: Sequence[Question]) -> bytes | ServiceError:
        if time.monotonic() >= self._context.deadline_s:
            return DeadlineExceeded(f"the call ended after {MAX_CALL_S} s, before this task")
        try:
            results_of = await self._results_of(data, questions)
            predictions = [prediction(version, results_of[version]) for version in results_of]
            outcome = await POSTPROCESSING.run(_encoded, predictions)
            self._core.places.hold(self._context, len(outcome))
        except Exception as error:  # a defect at one task must not fail the others
            return record_failure(error, self._context.api, self._context.request_id)
        return outcome

    async def prompted(self, data: object, version: str, questions: Sequence[Question]) -> bytes:
        """Return the one prediction, of `version`, that answers a prompt, as JSON."""
        results = chain(*(await self._results_of(data, questions)).values())
        return await POSTPROCESSING.run(_encoded, prediction(version, results))

    async def _results_of(
        self, data: object, questions: Sequence[Question]
    ) -> dict[str, list[JsonObject]]:
        """Return the results of each version of a model, image by image; raise `ServiceError`.

        A model that is down or defective is left out while others answer.
        """
        results_of: dict[str, list[JsonObject]] = {version_of(model): [] for model, _ in questions}
        failures: dict[str, ServiceError] = {}
        for key in dict.fromkeys(ask.control.image_key for _, ask in questions):
            context = replace(self._context, place=Place())  # counts the image
            running: list[tuple[str, asyncio.Task[list[JsonObject] | ServiceError]]] = []
            try:
                source = data.get(key) if isinstance(data, Mapping) else None
                image = await self._images.read(source, context)
                async with asyncio.TaskGroup() as group:
                    for model, ask in questions:
                        if ask.control.image_key == key:
                            task = group.create_task(self._results(image, model, ask))
                            running.append((version_of(model), task))
            except ExceptionGroup as errors:
                raise errors.exceptions[0] from None
            finally:
                self._core.places.leave(context)
            for version, task in running:
                outcome = task.result()
                if isinstance(outcome, ServiceError):
                    failures[version] = outcome
                else:
                    results_of[version] += outcome
        for version, failure in failures.items():
            if len(results_of) == 1:
                raise failure
            del results_of[version]
            record_error(failure, self._context.api, self._context.request_id)
        return results_of

    async def _results(
        self, image: bytes, model: ServedModel, ask: Ask
    ) -> list[JsonObject] | ServiceError:
        try:
            answer = await self._answer(image, ask.fields | {"model": model.id})
        except ServiceError as error:
            if error.code in _OF_ONE_MODEL:
                return error
            if error.code != "unsupported_task":
                raise
            return []
        return await POSTPROCESSING.run(list, ask.results(answer))

    async def _answer(self, image: bytes, fields: Mapping[str, object]) -> Answer:
        """Return an answer; wait and try again while the service is busy and the call has time."""
        async with self._answers:
            while True:
                try:
                    async with self._core.answer_slot(self._context) as context:
                        context.quota.take_request()
                        return await self._core.predict(image, fields, context)
                except Overloaded as error:
                    if time.monotonic() + error.retry_after_s >= self._context.deadline_s:
                        raise
                    await asyncio.sleep(error.retry_after_s)


def _is_temporary(outcome: bytes | ServiceError) -> bool:
    return isinstance(outcome, ServiceError) and outcome.code in _TEMPORARY


def _rendered(outcome: bytes | ServiceError) -> bytes:
    if _is_temporary(outcome):  # no prediction for a task that may be retried
        return _encoded([])
    if isinstance(outcome, ServiceError):
        return _encoded([prediction(f"failed: {outcome.message}", [])])
    return outcome


def _encoded(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
