"""Every method of a running gRPC server and every field of its messages, found by server
reflection.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from tests.support.sweep import LARGE_BYTES

_TEXTS = ("a", " ", "\n", " ; ", "a;", "a.", "a,", "é😀", "<loc_1>", "detect a ; ", "[{(<", "1")
_NUMBERS: Mapping[str, tuple[float, ...]] = {
    "float": (math.nan, math.inf, 1e300, 1e-300, -1.0),
    "int": (2**31 - 1, -1, 0),
}
_FEW_TEXTS = (" ; ", "é😀", "detect a ; ")
_MAX_DEPTH = 3

Field = Any  # a FieldDescriptor of protobuf's Python or of upb, which have no common type


@dataclass(frozen=True, slots=True)
class Call:
    """One call with the worst value of one field."""

    method: str
    field: str
    shape: str
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.field}, {self.shape}"


class GrpcSweep:
    """The calls of the methods of a channel's server; `valid` are values of fields by name."""

    def __init__(self, channel: grpc.Channel, valid: Mapping[str, Any], num_bytes: int) -> None:
        self._database = ProtoReflectionDescriptorDatabase(channel)
        self._pool = DescriptorPool(self._database)
        self._valid = valid
        self._num_bytes = num_bytes

    def calls(self) -> Iterator[Call]:
        """Yield the calls of all services but that of reflection, a stream of requests."""
        for name in self._database.get_services():
            if "reflection" not in name:
                yield from self._calls_of(self._pool.FindServiceByName(name))

    def _calls_of(self, service: ServiceDescriptor) -> Iterator[Call]:
        for method in service.methods:
            path = f"/{service.full_name}/{method.name}"
            make = GetMessageClass(method.input_type)
            for field, shape, message in self._messages(make):
                yield Call(path, field, shape, message.SerializePartialToString())

    def _filled(self, make: type[Message]) -> Message:
        message = make()
        for name, value in self._valid.items():
            field = message.DESCRIPTOR.fields_by_name.get(name)
            if field is not None:
                setattr(message, name, value)
        return message

    def _messages(self, make: Any, depth: int = 0) -> Iterator[tuple[str, str, Message]]:
        """Yield field, shape and message for every field of a type, and of the types of its
        fields.
        """
        for field in make.DESCRIPTOR.fields:
            for shape, value in self._values(field):
                message = self._filled(make)
                _set(message, field, value)
                yield field.name, shape, message
            if field.message_type is not None and not _is_map(field) and depth < _MAX_DEPTH:
                for inner, shape, value in self._messages(
                    GetMessageClass(field.message_type), depth + 1
                ):
                    message = self._filled(make)
                    _set(message, field, [value] if field.is_repeated else value)
                    yield f"{field.name}.{inner}", shape, message

    def _values(self, field: Field) -> Iterator[tuple[str, Any]]:
        if _is_map(field):
            yield "many names", {str(number): None for number in range(self._num_bytes // 20)}
        elif field.message_type is not None:
            if field.is_repeated:
                yield (
                    "many messages",
                    [GetMessageClass(field.message_type)()] * (self._num_bytes // 2),
                )
        elif field.is_repeated:
            for shape, value in self._scalars(field):
                yield shape, [value]
            yield "many", [_zero(field)] * (self._num_bytes // 4)
        else:
            yield from self._scalars(field)

    def _scalars(self, field: Field) -> Iterator[tuple[str, Any]]:
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                yield "bytes", b"\xff" * self._num_bytes
            case FieldDescriptor.CPPTYPE_STRING:
                for unit in _TEXTS if self._num_bytes >= LARGE_BYTES else _FEW_TEXTS:
                    yield unit, unit * (self._num_bytes // len(unit.encode()))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                for number in _NUMBERS["float"]:
                    yield str(number), number
            case FieldDescriptor.CPPTYPE_INT32 | FieldDescriptor.CPPTYPE_INT64:
                for number in _NUMBERS["int"]:
                    yield str(number), int(number)


def _is_map(field: Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _zero(field: Field) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return b"" if field.type == FieldDescriptor.TYPE_BYTES else ""
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return 0.0
        case _:
            return 0


def _set(message: Message, field: Field, value: Any) -> None:
    if field.name == "images":  # a request has one of them
        message.ClearField("image")
    target = getattr(message, field.name)
    if _is_map(field):
        for name in value:
            target[name]  # a map of messages makes what is looked up
    elif field.is_repeated:
        message.ClearField(field.name)
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        target.CopyFrom(value)
    else:
        setattr(message, field.name, value)
