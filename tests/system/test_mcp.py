"""`diptych mcp`, called by the SDK's own client over stdio, against the running service."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from mcp import Client, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from diptych_client import Client as DiptychClient
from diptych_client.transports.messages import to_json
from tests.support.client_command import DIPTYCH
from tests.support.scene_images import scene_png

Call = Callable[..., CallToolResult]


@contextmanager
def tools_of(url: str) -> Iterator[Call]:
    """Start the server as an agent's host does; yield a function that calls its tools."""
    arguments = ["--url", url, "--max-retries", "0", "mcp"]
    server = StdioServerParameters(command=DIPTYCH, args=arguments, env=dict(os.environ))
    client = Client(server, read_timeout_seconds=60)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):

        def call(tool: str, **arguments: Any) -> CallToolResult:
            portal.call(client.list_tools)
            result: CallToolResult = portal.call(client.call_tool, tool, arguments)
            return result

        yield call


def test_boxes_are_those_of_the_client(url: str, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    scene.write_bytes(scene_png())
    with tools_of(url) as call:
        result = call("object_detection", image=str(scene))
    assert not result.is_error
    (content,) = result.content
    assert isinstance(content, TextContent)
    assert json.loads(content.text) == result.structured_content
    (answer,) = result.structured_content["answers"]
    with DiptychClient(url) as client:
        expected = to_json(client.predict(scene, "object_detection"))["result"]["detections"]
    assert expected
    for detection, other in zip(answer["detections"], expected, strict=True):
        assert detection["label"] == other["label"]
        assert detection["box"] == pytest.approx(other["box"], abs=0.051)
