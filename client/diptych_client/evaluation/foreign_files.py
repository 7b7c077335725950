"""Label files of datasets, which strangers write: bounded, with one line of error.

Sizes: LVIS' largest JSON has 1.1 GB, a crowded XML or a YAML with 20,000 classes below 5 MB.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from diptych_client.inputs.problems import MALFORMED
from diptych_client.long_runs import RunError

MAX_JSON_BYTES = 4_000_000_000
MAX_LINE_BYTES = 50_000_000
MAX_TEXT_BYTES = 200_000_000  # a list of paths, or the labels of one image
MAX_XML_BYTES = 10_000_000
MAX_YAML_BYTES = 5_000_000
_MAX_XML_DEPTH = 32


def read_json(path: Path) -> Any:
    """Return the document of a JSON file; raise `RunError`."""
    text = read_text(path, MAX_JSON_BYTES)
    if not text.strip():
        raise RunError(f"{path} is empty; expected JSON")
    with _readable_as("JSON", path):
        return json.loads(text)


def read_yaml(path: Path) -> Any:
    """Return the document of a YAML file; raise `RunError`."""
    text = read_text(path, MAX_YAML_BYTES)
    with _readable_as("YAML", path):
        return _WithoutAliases(text).get_single_data()


def read_xml(path: Path, max_bytes: int = MAX_XML_BYTES) -> ElementTree.Element:
    """Return the root of an XML file without a document type, which could define entities."""
    data = _read(path, max_bytes)  # its first line names the encoding
    with _readable_as("XML", path):
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_Elements()))


@contextmanager
def _readable_as(form: str, path: Path) -> Iterator[None]:
    try:
        yield
    except RecursionError as error:
        raise RunError(f"{path} is not readable as {form}: nested too deeply") from error
    except (*MALFORMED, yaml.YAMLError, ElementTree.ParseError) as error:
        cause = " ".join(str(error).split())  # one line
        raise RunError(f"{path} is not readable as {form}: {cause}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank, numbered from 1; raise `RunError` for a long one."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise RunError(f"{path}, line {number}: longer than {MAX_LINE_BYTES:,} bytes")
            if text := _decoded(path, line).strip():
                yield number, text


def read_text(path: Path, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Return the text of a file in UTF-8; raise `RunError` if it is larger than allowed."""
    return _decoded(path, _read(path, max_bytes))


def _read(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RunError(f"{path} is larger than {max_bytes:,} bytes, the maximum for its format")
    return data


class _WithoutAliases(yaml.SafeLoader):
    """A loader without aliases: ten lines of them can expand to exabytes."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias is not allowed")
        return super().compose_node(parent, index)


class _Elements(ElementTree.TreeBuilder):
    """A tree of bounded depth."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def doctype(self, name: str, _public_id: str | None, _system_id: str | None) -> None:
        raise ValueError(f"a document type ({name}) is not allowed")

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:
        self._depth += 1
        if self._depth > _MAX_XML_DEPTH:
            raise ValueError(f"elements are nested deeper than {_MAX_XML_DEPTH}")
        return super().start(tag, attributes)

    def end(self, tag: str) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        cause = f"{error.reason} at byte {error.start}"
        raise RunError(f"{path} is not text in UTF-8: {cause}") from error
