"""`diptych mcp`, called by the SDK's own client over stdio, against the running service."""

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters
from mcp_types import CallToolResult, TextContent

from diptych_client import Client as DiptychClient
from diptych_client import Task
from diptych_client.transports.rest_messages import answer_json
from tests.support.client_command import DIPTYCH
from tests.support.running_service import RunningService, free_port
from tests.support.scene_images import scene_png

FLORENCE = "florence-2-mini"
PALIGEMMA = "paligemma-mini"


def session(url: str, use: Callable[[Client], Awaitable[Any]]) -> Any:
    """Start the server as an agent's host does, and return what `use` returns."""
    server = StdioServerParameters(
        command=DIPTYCH, args=["--url", url, "--max-retries", "0", "mcp"], env=dict(os.environ)
    )

    async def run() -> Any:
        async with Client(server, read_timeout_seconds=60) as client:
            return await use(client)

    return asyncio.run(run())


def call(url: str, tool: str, **arguments: Any) -> CallToolResult:
    result: CallToolResult = session(url, lambda client: client.call_tool(tool, arguments))
    return result


def protocol_error(url: str, use: Callable[[Client], Awaitable[Any]]) -> str:
    """Return the message of the error of the protocol that `use` gets."""

    async def refused(client: Client) -> str:
        with pytest.raises(MCPError) as caught:
            await use(client)
        return caught.value.message

    return str(session(url, refused))


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def properties_of(task: Task) -> Any:
    return task.parameters["properties"]


@pytest.fixture
def scene(tmp_path: Path) -> str:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    return str(path)


def test_each_offered_task_is_a_tool(service: RunningService) -> None:
    tools = session(service.url, lambda client: client.list_tools()).tools
    with DiptychClient(service.url) as client:
        tasks = {task.id: task for task in client.tasks() if task.models}
    assert {tool.name for tool in tools} == set(tasks)
    for tool in tools:
        assert set(tool.input_schema["properties"]) == {
            "image",
            "models",
            *properties_of(tasks[tool.name]),
        }
        assert tool.annotations.read_only_hint


@pytest.mark.parametrize("interface", ["rest", "grpc"])
def test_boxes_are_those_of_the_client(service: RunningService, scene: str, interface: str) -> None:
    url = service.url if interface == "rest" else f"grpc://{service.grpc_address}"
    result = call(url, "object_detection", image=scene)
    assert not result.is_error
    assert json.loads(text_of(result)) == result.structured_content
    (found,) = result.structured_content["answers"]
    with DiptychClient(url) as client:
        expected = answer_json(client.predict(scene, "object_detection"))["result"]["detections"]
    assert (
        [each["label"] for each in found["detections"]]
        == [each["label"] for each in expected]
        != []
    )
    for detection, other in zip(found["detections"], expected, strict=True):
        assert detection["box"] == pytest.approx(other["box"], abs=0.051)


def test_models_are_compared_on_an_image_in_base64(service: RunningService) -> None:
    image = f"data:image/png;base64,{base64.b64encode(scene_png()).decode()}"
    models = [FLORENCE, PALIGEMMA]
    result = call(service.url, "captioning", image=image, detail="paragraph", models=models)
    florence, paligemma = result.structured_content["answers"]
    assert florence["text"]
    assert paligemma["error"]["code"] == "unsupported_task"
    refused = call(service.url, "captioning", image=image, detail="paragraph", models=[PALIGEMMA])
    assert refused.is_error
    assert "paligemma-mini: unsupported_task" in text_of(refused)


def test_outlines_are_short(service: RunningService, scene: str) -> None:
    result = call(
        service.url, "instance_segmentation", image=scene, phrase="circle", models=[PALIGEMMA]
    )
    ((instance,),) = (each["instances"] for each in result.structured_content["answers"])
    assert 3 <= sum(map(len, instance["polygons"])) < 60


def test_errors_are_results_with_the_message_of_the_service(
    service: RunningService, scene: str, tmp_path: Path
) -> None:
    neither = call(service.url, "phrase_grounding", image=scene)
    assert neither.is_error
    assert "requires exactly one of caption, phrases" in text_of(neither)
    url = call(service.url, "ocr", image="https://example.org/a.png")
    assert url.is_error
    assert "image URLs are disabled" in text_of(url)
    (tmp_path / "broken.png").write_bytes(scene_png()[:100])
    assert "unsupported_image" in text_of(
        call(service.url, "ocr", image=str(tmp_path / "broken.png"))
    )


def test_an_unknown_tool_is_an_error_of_the_protocol(service: RunningService, scene: str) -> None:
    error = protocol_error(service.url, lambda client: client.call_tool("paint", {"image": scene}))
    assert "unknown tool 'paint'; the tools are captioning" in error


def test_the_server_starts_without_the_service() -> None:
    error = protocol_error(f"http://127.0.0.1:{free_port()}", lambda client: client.list_tools())
    assert error.startswith("cannot list the tasks of the service: connection_failed")
