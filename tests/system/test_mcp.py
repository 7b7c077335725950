"""`diptych mcp`, called by the SDK's own client over stdio, against the running service."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, TextContent, Tool

from diptych_client import Client as DiptychClient
from diptych_client.transports.messages import to_json
from tests.support.client_command import DIPTYCH
from tests.support.running_service import RunningService, free_port
from tests.support.scene_images import scene_png


@dataclass(frozen=True, slots=True)
class Agent:
    """A client of the protocol, whose event loop is in another thread, and the server's process."""

    portal: BlockingPortal
    client: Client

    def tools(self) -> list[Tool]:
        return self.portal.call(self.client.list_tools).tools

    def call(self, tool: str, **arguments: Any) -> CallToolResult:
        result: CallToolResult = self.portal.call(self.client.call_tool, tool, arguments)
        return result


@contextmanager
def agent(url: str) -> Iterator[Agent]:
    """Start the server as an agent's host does."""
    server = StdioServerParameters(
        command=DIPTYCH, args=["--url", url, "--max-retries", "0", "mcp"], env=dict(os.environ)
    )
    client = Client(server, read_timeout_seconds=60)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):
        yield Agent(portal, client)


@pytest.fixture(scope="module")
def rest(service: RunningService) -> Iterator[Agent]:
    """An agent whose server calls the service over REST."""
    with agent(service.url) as started:
        yield started


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.fixture
def scene(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    return str(path)


@pytest.mark.parametrize("interface", ["rest", "grpc"])
def test_boxes_are_those_of_the_client(service: RunningService, scene: str, interface: str) -> None:
    url = service.url if interface == "rest" else f"grpc://{service.grpc_address}"
    with agent(url) as started:
        result = started.call("object_detection", image=scene)
    assert not result.is_error
    assert json.loads(text_of(result)) == result.structured_content
    (found,) = result.structured_content["answers"]
    with DiptychClient(url) as client:
        expected = to_json(client.predict(scene, "object_detection"))["result"]["detections"]
    assert (
        [each["label"] for each in found["detections"]]
        == [each["label"] for each in expected]
        != []
    )
    for detection, other in zip(found["detections"], expected, strict=True):
        assert detection["box"] == pytest.approx(other["box"], abs=0.051)


def test_steps_are_asked_about_each_box(rest: Agent, scene: str) -> None:
    steps = [
        {"id": "things", "task": "object_detection"},
        {"id": "what", "task": "region_description", "each": "things"},
    ]
    things, what = rest.call("analyze", image=scene, steps=steps).structured_content["steps"]
    found = things["answers"][0]["detections"]
    assert {each["of"] for each in what["answers"]} == set(range(len(found))) != set()
    assert all(each["text"] for each in what["answers"])
    refused = rest.call("analyze", image=scene, steps=[{**steps[1], "each": "thing"}])
    assert "each is 'thing', which is not a step" in text_of(refused)


def test_errors_are_results_with_the_message_of_the_service(
    rest: Agent, scene: str, tmp_path: Path
) -> None:
    neither = rest.call("phrase_grounding", image=scene)
    assert neither.is_error
    assert "requires exactly one of caption, phrases" in text_of(neither)
    url = rest.call("ocr", image="https://example.org/a.png")
    assert url.is_error
    assert "image URLs are disabled" in text_of(url)
    (tmp_path / "broken.png").write_bytes(scene_png()[:100])
    assert "unsupported_image" in text_of(rest.call("ocr", image=str(tmp_path / "broken.png")))


def test_the_server_starts_without_the_service() -> None:
    refusal = "^cannot list the tasks of the service: connection_failed"
    with (
        agent(f"http://127.0.0.1:{free_port()}") as started,
        pytest.raises(MCPError, match=refusal),
    ):
        started.tools()
