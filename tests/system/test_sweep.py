"""No value of a field of a route stalls the gateway, keeps its memory, or fails any key.

HTTP routes and fields come from /openapi.json, those of gRPC from server reflection: a route or
field that is added later is found. A case is one request whose other fields are valid. `make test`
sends bodies of 100 kB, `make test-long` of the largest size.
"""

import itertools
import json
import math
import re
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from service.rpc.proto import vision_pb2 as pb
from tests.service.label_studio.test_mapping import labelled, view
from tests.support.api_keys import write_keys
from tests.support.export_cli import ModelStore
from tests.support.fake_service import data_url
from tests.support.request_bodies import FORM, form, part
from tests.support.running_service import GATEWAY, Access, RunningService, bearer, forked_service
from tests.support.scene_images import scene_png
from tests.support.waiting import repeating
from tests.system.service_metrics import metric, samples, total

MODEL = "florence-2-mini"
KEY = "sweeping"
OTHER_KEY = "other"
METADATA = [("authorization", f"Bearer {KEY}")]
SIZES = [100_000, pytest.param(19_000_000, marks=pytest.mark.long)]
LARGE_BYTES = 1_000_000
MAX_LAG_S = 0.1
KEPT_BODIES = 3
NOISE_BYTES = 40_000_000  # caches and arenas of the allocator
NUM_TRIES = 5  # a machine that is busy makes a loop late, too, but not each time in the same case
MAX_DEPTH = 3  # of messages
MARK = "@the value@"  # stands for the swept value in a body
UNKNOWN_FIELD = "a field that there is not"
FAILED = (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)

JsonSchema = Mapping[str, Any]
Place = tuple[str | int, ...]


def text_of(unit: str) -> Callable[[int], str]:
    return lambda size: f'"{unit * (size // len(unit.encode()))}"'


def names_of(size: int) -> str:
    return "{" + ",".join(f'"{number}":0' for number in range(size // 10)) + "}"


# JSON texts of a size: what has cost quadratic time or much memory somewhere.
FEW_VALUES: dict[str, Callable[[int], str]] = {
    "separators": text_of(" ; "),
    "escapes": text_of(r"\u0041"),
    "many digits": lambda _: "1" * 400,
    "list of objects": lambda size: f"[{'{},' * (size // 3)}{{}}]",
    "nested lists": lambda size: "[" * (size // 2) + "]" * (size // 2),
    "names": names_of,
}
UNITS = ["a", " ", r"\n", "a;", "a.", "a,", r"\ud800", "é\U0001f600", "<loc_1>", "detect a ; "]
UNITS += ["[{(<", r"\"'", "1", "a:", "<View><a>"]
ALL_VALUES = FEW_VALUES | {f"text of {unit}": text_of(unit) for unit in UNITS}
ALL_VALUES |= {
    "overflow": lambda _: "1e400",
    "underflow": lambda _: "1e-300",
    "number of this size": lambda size: "1" * size,
    "list of texts": lambda size: "[" + '"",' * (size // 3) + '""]',
    "list of one text": lambda size: f'["{"a" * size}"]',
    "nested objects": lambda size: '{"a":' * (size // 7) + "0" + "}" * (size // 7),
}
GRPC_VALID = {"image": b64encode(scene_png()).decode(), "task": "captioning", "id": "a"}
GRPC_UNITS = (" ; ", "é😀", "detect a ; ", "/", "a", " ", "\n", "a;", "a.", "<loc_1>", "[{(<", "1")
NUM_FEW_UNITS = 4


@dataclass(frozen=True, slots=True)
class Case:
    """One request with the worst value of one field."""

    name: str  # route or method, field and shape
    method: str
    path: str
    body: bytes
    content_type: str = ""


Send = Callable[[Case], str | None]  # returns why a case fails


@dataclass(frozen=True, slots=True)
class HttpSweep:
    """The cases of the HTTP routes of a document; `samples` are valid values of fields by name."""

    document: JsonSchema
    samples: Mapping[str, object]

    def bodies(self) -> Iterator[tuple[str, str, str, JsonSchema]]:
        """Yield method, path, content type and schema of every body."""
        for path, operations in self.document["paths"].items():
            for method, operation in operations.items():
                contents = operation.get("requestBody", {}).get("content", {})
                for content_type, content in contents.items():
                    yield method, path, content_type, content["schema"]

    def cases(
        self, method: str, path: str, content_type: str, schema: JsonSchema, num_bytes: int
    ) -> Iterator[Case]:
        """Yield a case for every field of all alternatives once, and value."""
        values = ALL_VALUES if num_bytes >= LARGE_BYTES else FEW_VALUES
        is_json = content_type == "application/json"
        for field, alternative in self.fields_of_body(schema).items():
            if not is_json and len(field) > 1:
                continue
            for shape, value in values.items():
                name = f"{method} {path} {field}, {shape}"
                body = self.body(alternative, field, value(num_bytes), is_json)
                yield Case(name, method, self.filled(path), body, content_type if is_json else FORM)

    def body(self, schema: JsonSchema, field: Place, value: str, is_json: bool) -> bytes:
        def text(item: Any) -> str:
            return json.dumps(item).replace(f'"{MARK}"', value)

        example = with_value(self.example(schema), field, MARK)
        if is_json:
            return text(example).encode()
        return form(*(part(name, text(item).strip('"')) for name, item in example.items()))

    def fields_of_body(self, schema: JsonSchema) -> dict[Place, JsonSchema]:
        fields: dict[Place, JsonSchema] = {}
        for alternative in self.alternatives(schema):
            for field, _ in self.values(alternative):
                fields.setdefault(field or (UNKNOWN_FIELD,), alternative)
        return fields

    def alternatives(self, schema: JsonSchema) -> Sequence[JsonSchema]:
        """Return the objects that a body may be, such as one for each task."""
        schema = self.resolved(schema)
        if "dependentSchemas" not in schema:
            return [schema] if "properties" in schema else schema.get("oneOf", [schema])
        (rules,) = schema["dependentSchemas"].values()
        choices = [rule["oneOf"] for rule in rules["allOf"]]
        return [with_rules(schema, chosen) for chosen in itertools.product(*choices)]

    def referenced(self, reference: str) -> Any:
        return self.document["components"]["schemas"][reference.rpartition("/")[2]]

    def resolved(self, schema: JsonSchema) -> JsonSchema:
        """Return a schema without a reference at its top; of alternatives the first."""
        while "$ref" in schema or "anyOf" in schema:
            schema = self.referenced(schema["$ref"]) if "$ref" in schema else schema["anyOf"][0]
        return schema

    def values(self, schema: JsonSchema, path: Place = ()) -> Iterator[tuple[Place, JsonSchema]]:
        """Yield path and schema of a body and each value in it, of all alternatives."""
        if "$ref" in schema:
            schema = self.referenced(schema["$ref"])
        if "properties" not in schema and (kinds := schema.get("anyOf", schema.get("oneOf"))):
            for kind in kinds:
                yield from self.values(kind, path)
            return
        yield path, schema
        for name, inner in schema.get("properties", {}).items():
            yield from self.values(inner, (*path, name))
        if schema.get("type") == "array":
            yield from self.values(schema.get("items", {}), (*path, 0))

    def example(self, schema: JsonSchema, name: str = "") -> Any:
        """Return a valid value with the required fields."""
        schema = self.resolved(schema)
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        if name in self.samples:
            return self.samples[name]
        match schema.get("type"):
            case "object":
                (alternative, *_) = schema.get("oneOf", [{}])  # one of several parameters
                required = [*schema.get("required", []), *alternative.get("required", [])]
                inner = schema.get("properties", {})
                return {field: self.example(inner.get(field, {}), field) for field in required}
            case "array":
                return [self.example(schema.get("items", {}))] * max(1, schema.get("minItems", 1))
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
        return "a"

    def filled(self, path: str) -> str:
        """Return a path with valid values of its parameters."""
        return re.sub(r"{(\w+)}", lambda match: str(self.samples.get(match[1], "a")), path)


def with_rules(schema: JsonSchema, rules: Iterable[JsonSchema]) -> JsonSchema:
    """Return an object that keeps to rules; `True` in them stands for its own properties."""
    properties = dict(schema["properties"])
    required = list(schema["required"])
    alternatives: list[JsonSchema] = [{}]
    for rule in rules:
        alternatives = rule.get("oneOf", alternatives)
        required += rule["required"]
        allowed = rule.get("properties", {})
        for name, inner in list(properties.items()):
            inner = allowed.get(name, rule.get("additionalProperties", True) and inner)
            if inner is False:
                del properties[name]
            elif inner is not True:
                properties[name] = inner
    required = list(dict.fromkeys(required))
    narrowed = {"properties": properties, "required": required, "oneOf": alternatives}
    return {**schema, **narrowed}


def is_bounded(schema: JsonSchema) -> bool:
    """Return False if a value may be of any size, but for what is in it."""
    if schema.keys() & {"const", "enum", "x-bound"}:
        return True
    limits = {"string": "maxLength", "array": "maxItems", "object": "maxProperties"}
    kind = schema.get("type", "anything")
    if kind == "object" and schema.get("additionalProperties", True) is False:
        return True
    return kind != "anything" and (kind not in limits or limits[kind] in schema)


def with_value(example: Any, field: Place, value: object) -> Any:
    """Return the example with `value` at the path of a field; objects and lists on the way are
    made.
    """
    if not field:
        return value
    name, *rest = field
    if isinstance(name, int):
        items = list(example) if isinstance(example, list) and example else [{}]
        return [with_value(items[0], tuple(rest), value), *items[1:]]
    fields = dict(example) if isinstance(example, dict) else {}
    return fields | {name: with_value(fields.get(name, {}), tuple(rest), value)}


def grpc_cases(channel: grpc.Channel, num_bytes: int) -> Iterator[Case]:
    """Yield the calls of the methods of a server, of all values that a field can have."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    values = worst_values(num_bytes)
    for service in database.get_services():
        if "reflection" in service:
            continue
        for method in pool.FindServiceByName(service).methods:
            path = f"/{service}/{method.name}"
            message_class = GetMessageClass(method.input_type)
            for field, document in worst_documents(method.input_type, values):
                with suppress(ParseError):
                    body = ParseDict(document, message_class()).SerializePartialToString()
                    yield Case(f"{path} {field}", method.name, path, body)


def worst_values(num_bytes: int) -> list[Any]:
    num_units = len(GRPC_UNITS) if num_bytes >= LARGE_BYTES else NUM_FEW_UNITS
    texts = [unit * (num_bytes // len(unit.encode())) for unit in GRPC_UNITS[:num_units]]
    lists = [[item] * (num_bytes // 4) for item in ("", dict[str, Any](), 0)]
    names: Any = {str(number): {} for number in range(num_bytes // 20)}
    return [*texts, *lists, names, *([text] for text in texts), math.nan, math.inf, -1, 2**31 - 1]


def worst_documents(
    kind: Any, values: Sequence[Any], depth: int = 0
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the JSON of messages, for every field of a type, and of the types of its fields."""
    for field in kind.fields:
        names = kind.fields_by_name.keys() & GRPC_VALID.keys()
        if field.name == "images":  # a request has one of them
            names.discard("image")
        valid = {name: GRPC_VALID[name] for name in names}
        for value in values:
            if isinstance(value, list | dict) == field.is_repeated:  # of a map, too
                yield field.name, valid | {field.name: value}
        if field.message_type is not None and depth < MAX_DEPTH:
            for name, inner in worst_documents(field.message_type, values, depth + 1):
                value = [inner] if field.is_repeated else inner
                yield f"{field.name}.{name}", valid | {field.name: value}


@pytest.fixture(scope="module")
def service(exported: ModelStore, folder: Path) -> Iterator[RunningService]:
    settings = {
        "DIPTYCH_API_KEYS_FILE": write_keys(folder / "keys", {KEY: "", OTHER_KEY: ""}),
        "DIPTYCH_IMAGES_FOLDER": str(folder / "images"),
    }
    access = Access(key=KEY)
    with forked_service(exported.home, folder / "service.log", access, **settings) as running:
        yield running


def num_late(service: RunningService) -> float:
    measured = samples(service)
    name = "diptych_event_loop_lag_seconds"
    return total(measured, f"{name}_count") - total(measured, f"{name}_bucket", le=str(MAX_LAG_S))


def problems_of(cases: Iterable[Case], send: Send, service: RunningService) -> list[str]:
    """Send all cases; return those that fail or make the event loop late."""
    problems = []
    late_before = num_late(service)
    for case in cases:
        start_s = time.monotonic()
        failure = send(case)
        if failure is None and time.monotonic() - start_s > MAX_LAG_S:
            late_after = num_late(service)
            if late_after > late_before and is_always_late(case, send, service):
                failure = "the event loop is late"
            late_before = late_after
        if failure is not None:
            problems.append(f"{case.name}: {failure}")
            print(problems[-1], flush=True)  # the largest sweep takes half an hour
    return problems


def is_always_late(case: Case, send: Send, service: RunningService) -> bool:
    gateway = psutil.Process(service.parts()[GATEWAY])
    for _ in range(NUM_TRIES):
        before = num_late(service)
        start_s = sum(gateway.cpu_times()[:2])
        send(case)
        processor_s = sum(gateway.cpu_times()[:2]) - start_s
        time.sleep(0.1)  # until the loop has measured
        if processor_s < MAX_LAG_S or num_late(service) == before:
            return False
    return True


def http_sweep(client: httpx.Client) -> HttpSweep:
    """Return the sweep of the document, with values of fields that have no small set of values."""
    url = data_url(scene_png())
    config = view(labelled("RectangleLabels", "circle"))
    valid = {
        "image": url,
        "images": [url],
        "url": url,
        "model": MODEL,
        "region": [10, 10, 60, 60],
        "content": [
            {"type": "text", "text": "<OCR>"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
        "model_id": MODEL,
        "version": "1",
        "status": "404",
        "schema": config,
        "label_config": config,
        "tasks": [{"id": 1, "data": {"image": url}}],
    }
    document = client.get("/openapi.json").raise_for_status().json()
    return HttpSweep(document, valid)


def http_failure(client: httpx.Client, case: Case) -> str | None:
    headers = {"Content-Type": case.content_type}
    response = client.request(case.method, case.path, content=case.body, headers=headers)
    return f"{response.status_code} {response.text[:200]}" if response.is_server_error else None


def grpc_failure(channel: grpc.Channel, case: Case) -> str | None:
    is_stream = case.method.endswith(("Stream", "Watch"))
    make: Any = channel.unary_stream if is_stream else channel.unary_unary
    try:
        answer = make(case.path)(case.body, timeout=10, metadata=METADATA)
        if is_stream:
            next(iter(answer))
            answer.cancel()
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name if code in FAILED else None
    return None


@contextmanager
def small_growth(service: RunningService, num_bytes: int) -> Iterator[None]:
    """Check that the block leaves no memory, and that another key's captions are answered."""

    def ask_caption() -> None:
        response = service.predict(headers=bearer(OTHER_KEY), task="captioning", model=MODEL)
        assert response.status_code == 200, response.text

    ask_caption()  # loads what it needs
    before = service.resident_bytes()
    with repeating(ask_caption, 0.2):
        yield
    assert service.resident_bytes() - before < KEPT_BODIES * num_bytes + NOISE_BYTES
    assert metric(service, "diptych_request_memory_bytes") == 0


@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_http_field_is_bounded(
    service: RunningService, client: httpx.Client, num_bytes: int
) -> None:
    sweep = http_sweep(client)
    distinct = {json.dumps(body[2:]): body for body in sweep.bodies()}
    problems: list[str] = []
    for body in distinct.values():
        with small_growth(service, num_bytes):
            cases = sweep.cases(*body, num_bytes)
            problems += problems_of(cases, partial(http_failure, client), service)
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("num_bytes", SIZES)
def test_every_grpc_field_is_bounded(service: RunningService, num_bytes: int) -> None:
    with grpc.insecure_channel(service.grpc_address) as channel:
        send = partial(grpc_failure, channel)
        problems = problems_of(grpc_cases(channel, num_bytes), send, service)
        with small_growth(service, num_bytes):  # what stays would stay again
            problems += problems_of(grpc_cases(channel, num_bytes), send, service)
    assert not problems, "\n".join(problems)


def test_valid_bodies_are_answered_and_their_fields_bounded(client: httpx.Client) -> None:
    sweep = http_sweep(client)
    num_answered = 0
    for method, path, content_type, schema in sweep.bodies():
        for alternative in (schema, *sweep.alternatives(schema)):
            fields = sweep.values(alternative)
            assert [field for field, value in fields if not is_bounded(value)] == [], path
        if content_type != "application/json":
            continue
        for alternative in sweep.alternatives(schema):
            response = client.request(method, sweep.filled(path), json=sweep.example(alternative))
            assert response.status_code in (200, 422), (path, response.text)
            num_answered += response.is_success
    assert num_answered > 20


def test_paths_of_clients_leave_nothing_behind(client: httpx.Client) -> None:
    before = len(client.get("/metrics").content)
    for number in range(50):
        assert client.get(f"/{number}/{'a' * 50_000}").status_code == 404
        assert client.get(f"/v1/models/{number}{'a' * 5_000}").status_code == 404
    assert len(client.get("/metrics").content) < before + 10_000


def test_large_message_is_refused(service: RunningService) -> None:
    request = pb.PredictRequest(image=bytes(21_000_000), task="ocr")
    with service.vision() as vision, pytest.raises(grpc.RpcError) as caught:
        vision.Predict(request, metadata=METADATA, timeout=60)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
