"""Tools made of tasks, and their server in the process of its client, over a scripted service."""

import asyncio
import base64
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp_types import CallToolResult, TextContent

from diptych_client import (
    Answer,
    AsyncClient,
    Comparison,
    DetectionsResult,
    ErrorDetail,
    Guarantee,
    ModelFailure,
    Task,
)
from diptych_client.integrations.mcp_server import answer_rows, read_image, tool_of, tool_server
from diptych_client.json_values import to_json
from tests.support.client_answers import DETECTIONS, INSTANCES, SIZE, TEXT, answer
from tests.support.scene_images import scene_png
from tests.support.scripted_services import Refusal, Script, serving_rest

REGION = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
PARAMETERS = {
    "properties": {"phrase": {"type": "string"}, "region": REGION},
    "required": ["phrase"],
    "oneOf": [{"required": ["phrase"]}, {"required": ["region"]}],
}
SEGMENT = Task("instance_segmentation", "Segment it.", "instances", PARAMETERS, ("m", "n"))
READ = Task("ocr", "Read it.", "text", {"properties": {}}, ("m",))
UNSERVED = replace(READ, id="captioning", models=())
FAILURE = ModelFailure("n", ErrorDetail("unsupported_task", "no", "task", "id"))
URL = "https://example.org/a.png"


def call(script: Script, tool: str, **arguments: Any) -> CallToolResult:
    async def run(url: str) -> CallToolResult:
        async with (
            AsyncClient(url, max_retries=0) as service,
            Client(tool_server(service)) as client,
        ):
            listed = await client.list_tools()
            assert [entry.name for entry in listed.tools] == ["ocr"]
            return await client.call_tool(tool, arguments)

    script.listings = {"/v1/tasks": [asdict(READ), asdict(UNSERVED)]}
    with serving_rest(script) as url:
        return asyncio.run(run(url))


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def comparison(*answers: Answer | ModelFailure) -> Script:
    return Script([json.dumps(to_json(Comparison("id", "ocr", SIZE, answers))).encode()])


def test_tool_has_parameters_options_and_models() -> None:
    tool = tool_of(SEGMENT)
    properties = tool.input_schema["properties"]
    options = ["min_score", "min_precision", "nms_iou"]
    assert list(properties) == ["image", "phrase", "region", *options, "models"]
    assert (properties["region"], properties["models"]["items"]["enum"]) == (REGION, ["m", "n"])
    assert tool.input_schema["required"] == ["image", "phrase"]
    assert "oneOf" not in tool.input_schema
    assert tool.description is not None
    assert "exactly one of phrase, region" in tool.description
    assert tool.annotations is not None
    assert tool.annotations.read_only_hint
    assert "min_score" not in tool_of(READ).input_schema["properties"]


def test_arguments_are_fields_of_the_request() -> None:
    script = Script([answer(INSTANCES)])
    region = [1, 2, 3, 4]
    assert not call(script, SEGMENT.id, image=URL, region=region, min_score=0.5).is_error
    (request,) = script.received
    for text in (URL, SEGMENT.id, "[1, 2, 3, 4]", "0.5"):
        assert f"\r\n\r\n{text}\r\n".encode() in request.body
    script = comparison(answer(TEXT), FAILURE)
    result = call(script, "ocr", image=URL, models="m,n")
    assert b'["m", "n"]' in script.received[0].body
    assert not result.is_error
    assert TEXT.text in text_of(result)  # letters instead of escapes
    result = call(comparison(FAILURE), "ocr", image=URL, models=["n"])
    assert result.is_error
    row = {"model": "n", "error": asdict(FAILURE.error)}
    assert json.loads(text_of(result))["answers"] == [row]
    assert result.structured_content == json.loads(text_of(result))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": URL, "x": 1}, "unexpected keyword argument 'x'"),
        ({"image": "/no/such/file.png"}, "there is no file /no/such/file.png"),
        ({"image": "~nobody.at.all/file.png"}, "home directory"),
        ({"image": "data:image/png;base64,=x="}, "padding"),
        ({"image": URL}, "overloaded: no"),
        ({}, "there is no file ."),
    ],
)
def test_failed_call_says_why(arguments: dict[str, Any], message: str) -> None:
    result = call(Script([Refusal("overloaded")]), "ocr", **arguments)
    assert result.is_error
    assert message in text_of(result)


def test_only_image_files_leave_the_computer(tmp_path: Path) -> None:
    data_url = f"data:image/png;base64,{base64.b64encode(scene_png()).decode()}"
    assert read_image(data_url) == scene_png()
    path = tmp_path / "file"
    for content in (b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBPVP8 ", scene_png()):
        path.write_bytes(content)
        assert read_image(str(path)) == content
    for content in (b"RIFF\0\0\0\0WAVE", b"secret"):
        path.write_bytes(content)
        with pytest.raises(OSError, match="must be a JPEG, PNG, WebP"):
            read_image(str(path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="there is no file"):
        read_image(str(tmp_path / "pipe"))


def test_rows_are_rounded_and_simplified() -> None:
    star = replace(DETECTIONS.detections[0], box_xyxy=(1.26, 2, 3, 4), score=0.98765)
    proved = Guarantee(0.95, 0.9, 0.5, 4, 80, 2)
    (row,) = answer_rows([replace(answer(DetectionsResult((star,))), guarantee=proved)])
    assert row == {
        "model": "some-model",
        "detections": [{"box": [1.3, 2, 3, 4], "label": "star", "score": 0.988}],
        "finish_reason": "stop",
        "calibrated": False,
        "guarantee": asdict(proved),
    }
    edge = [(x / 10, 0.0) for x in range(100)]
    dense = (*edge, (9.9, 9.0), (0.0, 9.0))
    instance = replace(INSTANCES.instances[0], polygons_xy=(dense,))
    (row,) = answer_rows([answer(replace(INSTANCES, instances=(instance,)))])
    assert row["instances"][0]["polygons"] == [[[0, 0], [9.9, 0], [9.9, 9], [0, 9]]]
