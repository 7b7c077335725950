"""The public contract: what clients and operators see changes only together with its record in
tests/contract/, a file for each interface: `python -m tests.test_contract` writes them.
"""

import dataclasses
import difflib
import enum
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator

from google.protobuf.descriptor import Descriptor, FileDescriptor

import diptych_client
from service.rpc.proto import vision_pb2
from service.settings import Settings, variable
from service.web.openapi import openapi_document
from tests.support.client_command import DIPTYCH
from tests.support.export_cli import ROOT
from tests.support.fake_service import served_models
from tests.support.monitoring import own_metrics

CONTRACT = ROOT / "tests" / "contract"
_MODULE_COMMANDS = ("service", "export", "export golden", "export.tune", "export.bento", "offline")
_SUBCOMMAND = re.compile(r"^. (\w[\w-]*)  ", re.MULTILINE)
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*|\{[\w,.-]+\}")
_OPTIONAL = re.compile(r"Optional\[(Literal\[[^]]*\])\]")  # before Python 3.14
_MODULE_PATH = re.compile(r"\b(?:\w+\.)+(?=\w)")


def test_contract_is_as_recorded() -> None:
    differences = list[str]()
    for name, text in contract().items():
        recorded = (CONTRACT / name).read_text(encoding="utf-8").splitlines()
        labels = (f"recorded {name}", f"code's {name}")
        differences += difflib.unified_diff(recorded, text.splitlines(), *labels, n=0)
    assert not differences, "\n".join(
        ["a wanted change is recorded by `python -m tests.test_contract`:", *differences]
    )


def contract() -> dict[str, str]:
    """Return the text of every file of tests/contract/ by its name."""
    interfaces: dict[str, Iterable[str]] = {
        "openapi.txt": _openapi(),
        "grpc.txt": _grpc(vision_pb2.DESCRIPTOR),
        "client.txt": _client(),
        "settings.txt": _settings(),
        "metrics.txt": sorted(_metrics()),
        "commands.txt": _commands(),
    }
    return {name: "\n".join([*lines, ""]) for name, lines in interfaces.items()}


def _openapi() -> Iterator[str]:
    """Yield a line for each operation and for each schema of the document."""
    document = json.loads(json.dumps(openapi_document(served_models())))
    for path, operations in document.pop("paths").items():
        for method, operation in operations.items():
            yield f"{method} {path} {_compact(operation)}"
    for kind, parts in document.pop("components").items():
        for name, part in parts.items():
            yield f"{kind} {name} {_compact(part)}"
    yield _compact(document)


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _grpc(file: FileDescriptor) -> Iterator[str]:
    for service_name, descriptor in file.services_by_name.items():
        for method in descriptor.methods:
            stream = "stream " if method.server_streaming else ""
            types = f"{method.input_type.name} -> {stream}{method.output_type.name}"
            yield f"{file.package}.{service_name}.{method.name}: {types}"
    for message in file.message_types_by_name.values():
        yield from _fields(message)
    for name, kind in file.enum_types_by_name.items():
        for value in kind.values:
            yield f"{file.package}.{name}.{value.name} = {value.number}"


def _fields(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        kind = field.message_type or field.enum_type
        type_name = kind.full_name if kind else f"type {field.type}"
        repeated = "repeated " if field.is_repeated else ""
        one_of = f" of {field.containing_oneof.name}" if field.containing_oneof else ""
        yield f"{field.full_name} = {field.number}: {repeated}{type_name}{one_of}"
    for nested in message.nested_types:
        yield from _fields(nested)


def _client() -> Iterator[str]:
    for name, value in sorted(inspect.getmembers(diptych_client, inspect.isclass)):
        yield f"{name}{_signature(value)}"
        yield from (f"{name}.{member}" for member in _members(value))


def _members(kind: type) -> Iterator[str]:
    if issubclass(kind, enum.Enum):
        yield from (f"{member.name} = {member.value!r}" for member in kind)
        return
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield f"{field.name}: {_plain(field.type)}"
    for name, member in sorted(inspect.getmembers(kind)):
        if name.startswith("_") or name in BaseException.__dict__:
            continue
        if inspect.isfunction(member) or inspect.ismethod(member):
            yield f"{name}{_signature(member)}"
        elif isinstance(inspect.getattr_static(kind, name), property):
            yield f"{name} (property)"


def _signature(value: object) -> str:
    if not callable(value):
        return f": {type(value).__name__}"
    return _plain(inspect.signature(value))


def _plain(annotation: object) -> str:
    """Return an annotation without the modules of its names: they may move."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return _OPTIONAL.sub(r"\1 | None", _MODULE_PATH.sub("", text))


def _settings() -> Iterator[str]:
    schemas = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        schema = {key: schemas[name][key] for key in schemas[name].keys() - {"title", "default"}}
        yield f"{variable(name)} = {field.default!r} {json.dumps(schema, sort_keys=True)}"


def _metrics() -> Iterator[str]:
    for metric in own_metrics():
        yield f"{metric._type} {metric._name} {','.join(metric._labelnames)}"


def _commands() -> Iterator[str]:
    for module in _MODULE_COMMANDS:
        yield f"python -m {module}: {_options(_help(sys.executable, '-m', *module.split()))}"
    text = _help(DIPTYCH)
    yield f"diptych: {_options(text)}"
    for subcommand in sorted(_SUBCOMMAND.findall(text)):
        yield f"diptych {subcommand}: {_options(_help(DIPTYCH, subcommand))}"


def _options(text: str) -> str:
    return " ".join(sorted(set(_OPTION.findall(text))))


def _help(*command: str) -> str:
    environment = os.environ | {"COLUMNS": "300", "TERMINAL_WIDTH": "300", "NO_COLOR": "1"}
    run = subprocess.run(
        [*command, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return run.stdout


if __name__ == "__main__":
    for _name, _text in contract().items():
        (CONTRACT / _name).write_text(_text, encoding="utf-8")
