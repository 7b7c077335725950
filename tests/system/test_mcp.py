"""`diptych mcp`, called by the SDK's own client over stdio, against the running service."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from diptych_client import Client as DiptychClient
from diptych_client.transports.messages import to_json
from tests.support.client_command import DIPTYCH
from tests.support.running_service import RunningService, free_port
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


@pytest.fixture(scope="module")
def rest(service: RunningService) -> Iterator[Call]:
    with tools_of(service.url) as call:
        yield call


@pytest.fixture
def scene(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    return str(path)


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def assert_detections(call: Call, url: str, scene: str) -> None:
    result = call("object_detection", image=scene)
    assert not result.is_error
    assert json.loads(text_of(result)) == result.structured_content
    (answer,) = result.structured_content["answers"]
    with DiptychClient(url) as client:
        expected = to_json(client.predict(scene, "object_detection"))["result"]["detections"]
    assert expected
    for detection, other in zip(answer["detections"], expected, strict=True):
        assert detection["label"] == other["label"]
        assert detection["box"] == pytest.approx(other["box"], abs=0.051)


def test_boxes_are_those_of_the_client(rest: Call, service: RunningService, scene: str) -> None:
    assert_detections(rest, service.url, scene)
    url = f"grpc://{service.grpc_address}"
    with tools_of(url) as call:
        assert_detections(call, url, scene)


def test_steps_ask_about_each_box(rest: Call, scene: str) -> None:
    steps = [
        {"id": "things", "task": "object_detection"},
        {"id": "what", "task": "region_description", "each": "things"},
    ]
    things, descriptions = rest("analyze", image=scene, steps=steps).structured_content["steps"]
    num_things = len(things["answers"][0]["detections"])
    assert num_things
    assert {answer["of"] for answer in descriptions["answers"]} == set(range(num_things))
    assert all(answer["text"] for answer in descriptions["answers"])
    refused = rest("analyze", image=scene, steps=[{**steps[1], "each": "thing"}])
    assert "each is 'thing', which is not a step" in text_of(refused)


def test_missing_service_is_an_error_of_the_listing() -> None:
    refusal = "^cannot list the tasks of the service: connection_failed"
    url = f"http://127.0.0.1:{free_port()}"
    with tools_of(url) as call, pytest.raises(MCPError, match=refusal):
        call("ocr")
