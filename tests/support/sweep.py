"""Every route of a running service and every field of its schemas, each with the worst values of
the largest size.

HTTP routes and fields come from /openapi.json, those of gRPC from server reflection: a route or
field that is added later is found without anybody thinking of it. A case is one request whose other
fields are valid.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

JsonSchema = Mapping[str, Any]
Path = tuple[str | int, ...]

LARGE_BYTES = 1_000_000
_MARK = "@the value@"  # stands for the swept value in a body
_UNKNOWN = "a field that there is not"
_PATH_BYTES = 1_600  # the head of a request has 64 kB, of which a quoted character takes up to 12

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


@dataclass(frozen=True, slots=True)
class Case:
    """One request with the worst value of one field."""

    name: str  # route or method, field and shape
    method: str
    path: str
    body: bytes
    content_type: str = ""

    def __str__(self) -> str:
        return self.name


def worst_values(num_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield the shape and the JSON text of each value; few of a size that costs nothing."""
    for shape, text in _worst_values(num_bytes):
        if num_bytes >= LARGE_BYTES or shape in _FEW:
            yield shape, text


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
        for path, operations in self._document["paths"].items():
            for method, operation in operations.items():
                yield method, path, operation

    def distinct_routes(self) -> Iterator[tuple[str, str, JsonSchema]]:
        """Yield the routes without a body, and the first of those that read the same one."""
        bodies = set()
        for method, path, operation in self.routes():
            body = json.dumps(operation.get("requestBody"))
            if body not in bodies:
                yield method, path, operation
            if "requestBody" in operation:
                bodies.add(body)

    def cases(self, method: str, path: str, operation: JsonSchema) -> Iterator[Case]:
        filled = self.filled(path)
        paths = {name: f"{{{name}}}" for name in re.findall(r"{(\w+)}", path)}
        for name, place in paths.items():
            for shape, text in worst_values(_PATH_BYTES):
                changed = path.replace(place, quote(text.strip('"'), safe=""))
                yield Case(f"{method} {path} {name}, {shape}", method, self.filled(changed), b"")
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "query":
                name = parameter["name"]
                for shape, text in worst_values(_PATH_BYTES):
                    query = f"{filled}?{name}={quote(text.strip(chr(34)), safe='')}"
                    yield Case(f"{method} {path} {name}, {shape}", method, query, b"")
        for content_type, content in operation.get("requestBody", {}).get("content", {}).items():
            is_json = content_type == "application/json"
            header = content_type if is_json else f"{content_type}; boundary=b"
            for name, body in self._bodies(content["schema"], is_json):
                yield Case(f"{method} {path} {name}", method, filled, body, header)

    def _bodies(self, schema: JsonSchema, is_json: bool) -> Iterator[tuple[str, bytes]]:
        """Yield field and shape, and the body, for every field of all alternatives once."""
        make = self._json_bodies if is_json else self._forms
        swept: set[str] = set()
        for alternative in self.alternatives(schema):
            for field in (*self.fields(alternative), (_UNKNOWN,)):
                name = ".".join(map(str, field))
                if name not in swept and (is_json or len(field) == 1):
                    swept.add(name)
                    for shape, body in make(alternative, field):
                        yield f"{name}, {shape}", body

    def alternatives(self, schema: JsonSchema) -> Sequence[JsonSchema]:
        """Return the objects that a body may be, such as one for each task."""
        schema = self.resolved(schema)
        return [schema] if "properties" in schema else schema.get("oneOf", [schema])

    def resolved(self, schema: JsonSchema) -> JsonSchema:
        """Return a schema without a reference at its top; of alternatives the first."""
        while "$ref" in schema or "anyOf" in schema:
            if "$ref" in schema:
                schema = self._document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            else:
                schema = schema["anyOf"][0]
        return schema

    def fields(self, schema: JsonSchema, path: Path = ()) -> Iterator[Path]:
        schema = self.resolved(schema)
        if path:
            yield path
        for name, inner in schema.get("properties", {}).items():
            yield from self.fields(inner, (*path, name))
        items = schema.get("items", {})
        for alternative in items.get("oneOf", items.get("anyOf", [items] if items else [])):
            yield from self.fields(alternative, (*path, 0))

    def example(self, schema: JsonSchema, name: str = "") -> Any:
        """Return a valid value with the required fields."""
        schema = self.resolved(schema)
        if "const" in schema or "enum" in schema:
            return schema.get("const", schema.get("enum", [None])[0])
        if name in self._samples:
            return self._samples[name]
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

    def _json_bodies(self, schema: JsonSchema, field: Path) -> Iterator[tuple[str, bytes]]:
        body = json.dumps(_with_value(self.example(schema), field, _MARK))
        before, _, after = body.partition(f'"{_MARK}"')
        for shape, text in worst_values(self._num_bytes):
            yield shape, f"{before}{text}{after}".encode()

    def _forms(self, schema: JsonSchema, field: Path) -> Iterator[tuple[str, bytes]]:
        name = str(field[0])
        others = b""
        for other, value in self.example(schema).items():
            text = value if isinstance(value, str) else json.dumps(value)
            others += b"" if other == name else _part(other, text)
        for shape, text in worst_values(self._num_bytes):
            is_structure = shape.startswith(("list", "nested", "names"))
            yield shape, others + _part(name, text if is_structure else text.strip('"')) + _END
        yield "parts", others + _part(name, "1") * (self._num_bytes // 60) + _END

    def filled(self, path: str) -> str:
        """Return a path with valid values of its parameters."""
        return re.sub(r"{(\w+)}", lambda match: str(self._samples.get(match[1], "a")), path)

    def unbounded_fields(self, schema: JsonSchema, name: str = "") -> Iterator[str]:
        """Yield the path of every field that may be of any size."""
        if "$ref" in schema:
            schema = self.resolved(schema)
        alternatives = schema.get("anyOf", schema.get("oneOf", []))
        if alternatives and "properties" not in schema:
            for alternative in alternatives:
                yield from self.unbounded_fields(alternative, name)
            return
        if schema.keys() & {"const", "enum", "x-bound"}:
            return
        match schema.get("type"):
            case "string" if "maxLength" not in schema:
                yield name
            case "array":
                if "maxItems" not in schema:
                    yield f"{name}[]"
                yield from self.unbounded_fields(schema.get("items", {}), f"{name}[]")
            case "object":
                is_open = schema.get("additionalProperties", True) is not False
                if is_open and "maxProperties" not in schema:
                    yield f"{name}{{}}"
                for field, inner in schema.get("properties", {}).items():
                    yield from self.unbounded_fields(inner, f"{name}.{field}")
            case None:
                yield name


_END = b"--b--\r\n"


def _part(name: str, value: str) -> bytes:
    """Return a part of a form whose boundary is `b`."""
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()


def _with_value(example: Any, field: Path, value: object) -> Any:
    """Return the example with `value` at the path of a field; objects and lists on the way are
    made.
    """
    if not field:
        return value
    name, *rest = field
    if isinstance(name, int):
        items = list(example) if isinstance(example, list) and example else [{}]
        return [_with_value(items[0], tuple(rest), value), *items[1:]]
    fields = dict(example) if isinstance(example, dict) else {}
    return fields | {name: _with_value(fields.get(name, {}), tuple(rest), value)}


_GRPC_TEXTS = ("a", " ", "\n", "a;", "a.", "a,", "<loc_1>", "[{(<", "1")
_FEW_GRPC_TEXTS = (" ; ", "é😀", "detect a ; ")
_FLOATS = (math.nan, math.inf, 1e300, 1e-300, -1.0)
_INTEGERS = (2**31 - 1, -1, 0)
_MAX_DEPTH = 3

Field = Any  # a FieldDescriptor of protobuf's Python or of upb, which have no common type


class GrpcSweep:
    """The calls of the methods of a channel's server; `valid` are values of fields by name."""

    def __init__(self, channel: grpc.Channel, valid: Mapping[str, Any], num_bytes: int) -> None:
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._valid = valid
        self._num_bytes = num_bytes

    def cases(self) -> Iterator[Case]:
        pool = DescriptorPool(self._database)
        for name in self._database.get_services():
            if "reflection" in name:
                continue
            for method in pool.FindServiceByName(name).methods:
                path = f"/{name}/{method.name}"
                for field, message in self._messages(GetMessageClass(method.input_type)):
                    body = message.SerializePartialToString()
                    yield Case(f"{path} {field}", method.name, path, body)

    def _messages(self, make: Any, depth: int = 0) -> Iterator[tuple[str, Message]]:
        """Yield field and shape, and a message, for every field of a type, and of the types of its
        fields.
        """
        for field in make.DESCRIPTOR.fields:
            for shape, value in self._values(field):
                yield f"{field.name}, {shape}", self._message(make, field, value)
            if field.message_type is None or _is_map(field) or depth == _MAX_DEPTH:
                continue
            for name, inner in self._messages(GetMessageClass(field.message_type), depth + 1):
                value = [inner] if field.is_repeated else inner
                yield f"{field.name}.{name}", self._message(make, field, value)

    def _message(self, make: Callable[[], Message], field: Field, value: Any) -> Message:
        """Return a valid message but for `value` of a field."""
        message = make()
        for name in self._valid.keys() & message.DESCRIPTOR.fields_by_name.keys():
            setattr(message, name, self._valid[name])
        if field.name == "images":  # a request has one of them
            message.ClearField("image")
        if _is_map(field):
            for name in value:
                getattr(message, field.name)[name]  # a map of messages makes what is looked up
        elif field.is_repeated:
            message.ClearField(field.name)
            getattr(message, field.name).extend(value)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(value)
        else:
            setattr(message, field.name, value)
        return message

    def _values(self, field: Field) -> Iterator[tuple[str, Any]]:
        if _is_map(field):
            yield "many names", [str(number) for number in range(self._num_bytes // 20)]
        elif field.message_type is not None:
            if field.is_repeated:
                messages = [GetMessageClass(field.message_type)()] * (self._num_bytes // 2)
                yield "many messages", messages
        else:
            for value in self._scalars(field):
                shape = str(value[:8] if isinstance(value, str | bytes) else value)
                yield shape, [value] if field.is_repeated else value
            if field.is_repeated:
                zero = type(next(self._scalars(field), 0))()
                yield "many", [zero] * (self._num_bytes // 4)

    def _scalars(self, field: Field) -> Iterator[Any]:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                yield b"\xff" * self._num_bytes
            case FieldDescriptor.CPPTYPE_STRING:
                others = _GRPC_TEXTS if self._num_bytes >= LARGE_BYTES else ()
                for unit in (*_FEW_GRPC_TEXTS, *others):
                    yield unit * (self._num_bytes // len(unit.encode()))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                yield from _FLOATS
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
                yield from _INTEGERS


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry
