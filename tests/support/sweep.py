"""Every route of a running service and every field of its schemas, each with the worst values of
the largest size.

HTTP routes and fields come from /openapi.json, those of gRPC from server reflection: a route or
field that is added later is found without anybody thinking of it. A case is one request whose other
fields are valid.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from tests.support.fake_service import data_url

JsonSchema = Mapping[str, Any]

_MARK = "@the value@"  # stands for the swept value in a body
_PATH_BYTES = 20_000  # the head of a request has 64 kB, of which a quoted character takes up to 12
_BOUNDARY = {"multipart/form-data": "; boundary=b"}

# Repeated to the size, between quotes: what has cost quadratic time or much memory somewhere.
_TEXTS = {
    "letters": "a",
    "spaces": " ",
    "line ends": r"\n",
    "separators": " ; ",
    "semicolons": "a;",
    "dots": "a.",
    "commas": "a,",
    "escapes": r"\u0041",
    "surrogates": r"\ud800",
    "wide": "é\U0001f600",
    "locations": "<loc_1>",
    "prompts": "detect a ; ",
    "brackets": "[{(<",
    "quotes": r"\"'",
    "digits": "1",
    "colons": "a:",
    "tags": "<View><a>",
}
_NUMBERS = {
    "many digits": "1" * 400,
    "overflow": "1e400",
    "underflow": "1e-300",
    "negative": "-1",
    "large": "1e300",
}
_LISTS = {"objects": "{}", "texts": '""', "numbers": "1", "lists": "[]"}
_NESTED = {"nested lists": ("[", "]"), "nested objects": ('{"a":', "0}")}
_FEW = {"separators", "escapes", "many digits", "list of objects", "nested lists", "names"}
LARGE_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class Case:
    """One request with the worst value of one field."""

    route: str  # method and path as in the document
    field: str
    shape: str
    method: str
    path: str
    body: bytes
    content_type: str

    def __str__(self) -> str:
        return f"{self.route} {self.field}, {self.shape}"


def worst_values(num_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield the shape and the JSON text of each value; few of a size that costs nothing."""
    values = _worst_values(num_bytes)
    if num_bytes >= LARGE_BYTES:
        return values
    return ((shape, text) for shape, text in values if shape in _FEW)


def _worst_values(num_bytes: int) -> Iterator[tuple[str, str]]:
    for shape, unit in _TEXTS.items():
        yield shape, f'"{unit * (num_bytes // len(unit.encode()))}"'
    yield from _NUMBERS.items()
    yield "number of this size", "1" * num_bytes
    for shape, item in _LISTS.items():
        yield f"list of {shape}", f"[{','.join([item] * (num_bytes // (len(item) + 1)))}]"
    yield "list of one text", f'["{"a" * num_bytes}"]'
    for shape, (opening, closing) in _NESTED.items():
        depth = num_bytes // len(opening + closing)
        yield shape, opening * depth + closing * depth
    yield "names", "{" + ",".join(f'"{number}":0' for number in range(num_bytes // 10)) + "}"


class HttpSweep:
    """The cases of the HTTP routes of a document; `samples` are valid values of fields by name."""

    def __init__(self, document: JsonSchema, samples: Mapping[str, object], num_bytes: int) -> None:
        self._document = document
        self._samples = samples
        self._num_bytes = num_bytes

    def routes(self) -> Iterator[tuple[str, str, JsonSchema]]:
        """Yield method, path and operation of each route."""
        for path, operations in self._document["paths"].items():
            for method, operation in operations.items():
                yield method, path, operation

    def distinct_routes(self) -> Iterator[tuple[str, str, JsonSchema]]:
        """Yield the routes without a body, and the first of those that read the same one."""
        seen = set()
        for route in self.routes():
            body = json.dumps(route[2].get("requestBody"))
            if body not in seen:
                yield route
            if "requestBody" in route[2]:
                seen.add(body)

    def cases(self, method: str, path: str, operation: JsonSchema) -> Iterator[Case]:
        """Yield every case of a route."""
        yield from self._of_path(method, path)
        yield from self._of_query(method, path, operation)
        for content_type, content in operation.get("requestBody", {}).get("content", {}).items():
            make = self._of_json if content_type == "application/json" else self._of_form
            seen: set[str] = set()
            for schema in self.alternatives(content["schema"]):
                for field, shape, body in make(schema, seen):
                    filled = self.filled(path)
                    type_ = f"{content_type}{_BOUNDARY.get(content_type, '')}"
                    yield Case(
                        f"{method} {path} {content_type}", field, shape, method, filled, body, type_
                    )

    def alternatives(self, schema: JsonSchema) -> Sequence[JsonSchema]:
        """Return the objects that a body may be, such as one for each task."""
        schema = self.resolved(schema)
        return [schema] if "properties" in schema else schema.get("oneOf", [schema])

    def valid_body(self, schema: JsonSchema) -> bytes:
        """Return a body of the required fields that is valid."""
        return json.dumps(self.example(schema)).encode()

    def resolved(self, schema: JsonSchema) -> JsonSchema:
        """Return a schema without a reference at its top; of alternatives the first."""
        while "$ref" in schema or "anyOf" in schema:
            if "$ref" in schema:
                schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            else:
                schema = schema["anyOf"][0]
        return schema

    def fields(
        self, schema: JsonSchema, path: tuple[str | int, ...] = ()
    ) -> Iterator[tuple[str | int, ...]]:
        """Yield the path of every field, of objects in objects and lists too."""
        schema = self.resolved(schema)
        if path:
            yield path
        for name, each in schema.get("properties", {}).items():
            yield from self.fields(each, (*path, name))
        items = schema.get("items", {})
        for alternative in items.get("oneOf", items.get("anyOf", [items] if items else [])):
            yield from self.fields(alternative, (*path, 0))

    def example(self, schema: JsonSchema, name: str = "") -> object:
        """Return a valid value with the required fields."""
        schema = self.resolved(schema)
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        if name in self._samples:
            return self._samples[name]
        match schema.get("type"):
            case "object":
                (needed, *_) = schema.get("oneOf", [{}])  # one of several parameters
                required = [*schema.get("required", []), *needed.get("required", [])]
                properties = schema.get("properties", {})
                return {each: self.example(properties.get(each, {}), each) for each in required}
            case "array":
                return [self.example(schema.get("items", {}))] * max(1, schema.get("minItems", 1))
            case "integer" | "number":
                return schema.get("minimum", 1)
            case "boolean":
                return False
        return "a"

    def _of_path(self, method: str, path: str) -> Iterator[Case]:
        for name in re.findall(r"{(\w+)}", path):
            for shape, text in worst_values(_PATH_BYTES // 12):
                value = quote(text.strip('"'), safe="")
                filled = self.filled(path.replace(f"{{{name}}}", value))
                yield Case(f"{method} {path}", name, shape, method, filled, b"", "")

    def _of_query(self, method: str, path: str, operation: JsonSchema) -> Iterator[Case]:
        queries = [
            each["name"] for each in operation.get("parameters", []) if each["in"] == "query"
        ]
        for name in queries:
            for shape, text in worst_values(_PATH_BYTES // 12):
                filled = f"{self.filled(path)}?{name}={quote(text.strip(chr(34)), safe='')}"
                yield Case(f"{method} {path}", name, shape, method, filled, b"", "")

    def _of_json(self, schema: JsonSchema, seen: set[str]) -> Iterator[tuple[str, str, bytes]]:
        for field in (*self.fields(schema), ("a field that there is not",)):
            name = ".".join(map(str, field))
            if name in seen:
                continue
            seen.add(name)
            body = json.dumps(_with_value(self.example(schema), field, _MARK))
            before, _, after = body.partition(f'"{_MARK}"')
            for shape, text in worst_values(self._num_bytes):
                yield name, shape, before.encode() + text.encode() + after.encode()

    def _of_form(self, schema: JsonSchema, seen: set[str]) -> Iterator[tuple[str, str, bytes]]:
        valid = cast(dict[str, object], self.example(schema))
        for name in (*self.resolved(schema).get("properties", {}), "a field that there is not"):
            if name in seen:
                continue
            seen.add(name)
            others = [
                form_part(each, _form_text(value)) for each, value in valid.items() if each != name
            ]
            for shape, text in worst_values(self._num_bytes):
                value = text if shape.startswith(("list", "nested", "names")) else text.strip('"')
                yield (
                    name,
                    shape,
                    b"".join([*others, form_part(name, value.encode()), b"--b--\r\n"]),
                )
            many = [form_part(name, b"1")] * (self._num_bytes // 60)
            yield name, "parts", b"".join([*others, *many, b"--b--\r\n"])

    def filled(self, path: str) -> str:
        """Return a path with valid values of its parameters."""
        return re.sub(r"{(\w+)}", lambda match: str(self._samples.get(match[1], "a")), path)


def form_part(name: str, value: bytes) -> bytes:
    """Return a part of a form whose boundary is `b`."""
    return (
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n"
    )


def _form_text(value: object) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()


def _with_value(example: object, field: Sequence[str | int], value: object) -> object:
    """Return the example with `value` at the path of a field; objects and lists on the way are
    made.
    """
    if not field:
        return value
    name, *rest = field
    if isinstance(name, int):
        items = list(example) if isinstance(example, list) and example else [{}]
        items[0] = _with_value(items[0], rest, value)
        return items
    fields = dict(example) if isinstance(example, dict) else {}
    fields[name] = _with_value(fields.get(name, {}), rest, value)
    return fields


def samples(image: bytes, model: str, label_config: str) -> Mapping[str, object]:
    """Return valid values of the fields that have no small set of values, by name."""
    url = data_url(image)
    tensor = {"datatype": "BYTES", "shape": [1]}
    return {
        "inputs": [
            {"name": "image", **tensor, "data": [url]},
            {"name": "task", **tensor, "data": ["ocr"]},
        ],
        "image": url,
        "images": [url],
        "url": url,
        "model": model,
        "region": [10, 10, 60, 60],
        "content": [
            {"type": "text", "text": "<OCR>"},
            {"type": "image_url", "image_url": {"url": url}},
        ],
        "model_id": model,
        "version": "1",
        "status": "404",
        "schema": label_config,
        "label_config": label_config,
        "tasks": [{"id": 1, "data": {"image": url}}],
    }


def unbounded_fields(schema: JsonSchema, sweep: HttpSweep, name: str = "") -> Iterator[str]:
    """Yield the path of every field that may be of any size."""
    if "$ref" in schema:
        schema = sweep.resolved(schema)
    alternatives = [] if "properties" in schema else schema.get("anyOf", schema.get("oneOf", []))
    for each in alternatives:
        yield from unbounded_fields(each, sweep, name)
    if alternatives:
        return
    if any(bound in schema for bound in ("const", "enum", "x-bound")):
        return
    match schema.get("type"):
        case "string" if "maxLength" not in schema:
            yield name
        case "array":
            if "maxItems" not in schema:
                yield f"{name}[]"
            yield from unbounded_fields(schema.get("items", {}), sweep, f"{name}[]")
        case "object":
            extra = schema.get("additionalProperties", True)
            if extra is not False and "maxProperties" not in schema:
                yield f"{name}{{}}"
            for field, value in schema.get("properties", {}).items():
                yield from unbounded_fields(value, sweep, f"{name}.{field}")
        case "null" | "boolean" | "integer" | "number":
            return
        case None:
            yield name
