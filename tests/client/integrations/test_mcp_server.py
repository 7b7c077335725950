"""Tools made of tasks, and their server in the process of its client, over a scripted service."""

import asyncio
import base64
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from mcp import Client, MCPError
from mcp_types import TextContent

from diptych_client import (
    AnswerOptions,
    AsyncClient,
    ErrorDetail,
    Guarantee,
    ModelFailure,
    Task,
    TaskParameters,
)
from diptych_client.integrations.mcp_server import (
    ToolArguments,
    ToolServer,
    analysis_content,
    analyze_tool,
    content_of,
    tool_of,
)
from diptych_client.results import Analysis, StepAnswer, StepAnswers
from tests.support.client_answers import DETECTIONS, INSTANCES, SIZE, TEXT, TEXT_REGIONS, answer
from tests.support.scene_images import scene_png
from tests.support.scripted_services import Script, serving_rest

REGION = {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
WORDS = {"type": "array", "items": {"type": "string"}}
PARAMETERS = {
    "type": "object",
    "properties": {
        "phrase": {"type": "string", "minLength": 1},
        "phrases": WORDS,
        "region": REGION,
    },
    "required": [],
    "additionalProperties": False,
    "oneOf": [{"required": ["phrase"]}, {"required": ["region"]}],
}
SEGMENT = Task("instance_segmentation", "Segment it.", "instances", PARAMETERS, ("m", "n"))
TOOL = tool_of(SEGMENT)
URL = "https://example.org/a.png"


def parsed(**arguments: Any) -> ToolArguments:
    return ToolArguments.parse(TOOL, {"image": URL} | arguments)


def test_a_tool_has_the_image_the_parameters_and_the_models_that_offer_the_task() -> None:
    options = ["min_score", "min_precision", "nms_iou"]
    names = ["image", "phrase", "phrases", "region", *options, "models"]
    assert list(TOOL.input_schema["properties"]) == names
    assert TOOL.input_schema["properties"]["region"] == REGION
    assert TOOL.input_schema["properties"]["models"]["items"]["enum"] == ["m", "n"]
    assert TOOL.input_schema["required"] == ["image"]


def test_a_task_whose_result_is_text_has_no_options_of_objects() -> None:
    describe = tool_of(Task("ocr", "Read it.", "text", PARAMETERS, ("m",)))
    assert "min_score" not in describe.input_schema["properties"]


def test_a_tool_changes_nothing_and_sees_nothing_but_its_arguments() -> None:
    assert TOOL.annotations is not None
    assert TOOL.annotations.read_only_hint is True
    assert TOOL.annotations.open_world_hint is False


def test_the_description_has_the_choice_that_tool_apis_refuse_in_the_schema() -> None:
    assert "oneOf" not in TOOL.input_schema
    assert TOOL.description is not None
    assert "exactly one of phrase, region" in TOOL.description


def test_arguments_are_those_of_the_client() -> None:
    call = parsed(region=[1, 2, 3, 4], models=["n"], min_score=0.5, nms_iou=1)
    assert (call.image, call.models) == (URL, ["n"])
    assert call.options == AnswerOptions(min_score=0.5, nms_iou=1)
    # JSON has lists
    assert call.parameters == TaskParameters(region=[1, 2, 3, 4])  # type: ignore[arg-type]


def test_a_list_may_be_one_text_with_commas() -> None:
    call = parsed(phrases='circle, "red, round"', models="m,n")
    assert call.parameters.phrases == ["circle", "red, round"]
    assert call.models == ["m", "n"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": None}, "image: None is not of type 'string'"),
        ({"phrase": ""}, "phrase: "),
        ({"models": ["x"]}, r"models\.0: 'x' is not one of \['m', 'n'\]"),
        ({"models": "m, x"}, r"models\.1: 'x' is not one of \['m', 'n'\]"),
        ({"min_score": 2}, "min_score: 2 is greater than the maximum of 1"),
        ({"question": "?"}, "^Additional properties .*'question'"),
        ({"image": "data:image/png,x"}, "without base64"),
        ({"image": "data:image/png;base64,=x="}, "image is not base64"),
        ({"image": "/no/such/file.png"}, "there is no file /no/such/file.png"),
    ],
)
def test_an_error_names_the_argument_and_the_reason(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parsed(**arguments)


def test_a_file_and_base64_are_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "scene.png"
    path.write_bytes(scene_png())
    data_url = f"data:image/png;base64,{base64.b64encode(scene_png()).decode()}"
    assert parsed(image=str(path)).image == parsed(image=data_url).image == scene_png()


@pytest.mark.parametrize(
    ("content", "is_image"),
    [
        (b"\xff\xd8\xff\xe0", True),
        (b"RIFF\0\0\0\0WEBPVP8 ", True),
        (b"RIFF\0\0\0\0WAVE", False),
        (b"secret", False),
    ],
)
def test_no_file_but_an_image_leaves_the_computer(
    tmp_path: Path, content: bytes, is_image: bool
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    if is_image:
        assert parsed(image=str(path)).image == content
    else:
        with pytest.raises(OSError, match="must be a JPEG, PNG or WebP file"):
            parsed(image=str(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="there is no file"):
        parsed(image=str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("text", TEXT),
        ("detections", DETECTIONS),
        ("instances", INSTANCES),
        ("text_regions", TEXT_REGIONS),
    ],
)
def test_the_content_has_the_declared_schema(kind: str, result: Any) -> None:
    failure = ModelFailure("n", ErrorDetail("unsupported_task", "no", "task", "id"))
    content = content_of(SIZE, [answer(result), failure])
    schema = tool_of(Task("t", "d", kind, {"properties": {}}, ("some-model", "n"))).output_schema
    assert schema is not None
    Draft202012Validator(schema).validate(json.loads(json.dumps(content)))
    answered, failed = content["answers"]
    assert set(answered) == {"model", kind, "finish_reason", "calibrated"}
    assert failed == {"model": "n", "error": {"code": "unsupported_task", "message": "no"}}


def test_the_content_has_what_is_proved() -> None:
    proved = Guarantee(0.95, 0.9, 0.5, 4, 80, 2)
    (answered,) = content_of(SIZE, [replace(answer(DETECTIONS), guarantee=proved)])["answers"]
    assert answered["guarantee"] == asdict(proved)


def test_boxes_are_pixels_of_the_image() -> None:
    content = content_of(SIZE, [answer(DETECTIONS)])
    assert content["image"] == {"width": SIZE.width, "height": SIZE.height}
    assert content["answers"][0]["detections"][0] == {
        "box": [1.0, 2.0, 11.0, 12.0],
        "label": "star",
        "score": 0.9,
    }


def test_an_analysis_has_the_answers_of_its_steps_and_what_each_is_of() -> None:
    tool = analyze_tool([SEGMENT, Task("ocr", "Read it.", "text", PARAMETERS, ())])
    steps = [{"id": "a", "task": SEGMENT.id, "each": "b", "phrase": "{label}"}]
    assert ToolArguments.parse(tool, {"image": URL, "steps": steps}).steps == steps
    with pytest.raises(ValueError, match=r"steps\.0\.task: 'ocr' is not one of"):
        ToolArguments.parse(tool, {"image": URL, "steps": [{"id": "a", "task": "ocr"}]})
    failure = ModelFailure("n", ErrorDetail("unsupported_task", "no", "task", "id"))
    answers = (StepAnswer(answer(DETECTIONS), 0), StepAnswer(failure))
    content = analysis_content(Analysis("id", SIZE, (StepAnswers("a", SEGMENT.id, True, answers),)))
    assert tool.output_schema is not None
    Draft202012Validator(tool.output_schema).validate(json.loads(json.dumps(content)))
    (step,) = content["steps"]
    answered, failed = step["answers"]
    assert (step["truncated"], answered["of"], "of" in failed) == (True, 0, False)
    assert (
        answered["detections"] == content_of(SIZE, [answer(DETECTIONS)])["answers"][0]["detections"]
    )


TASK = {
    "id": "ocr",
    "description": "Read it.",
    "result": "text",
    "parameters": {"properties": {}},
    "models": ["m"],
}
URL = "https://example.org/a.png"


def test_a_host_that_reads_only_text_gets_letters_and_not_escapes() -> None:
    async def call(url: str) -> str:
        async with (
            AsyncClient(url, max_retries=0) as service,
            Client(ToolServer(service).server()) as client,
        ):
            result = await client.call_tool("ocr", {"image": URL})
        (content,) = result.content
        assert isinstance(content, TextContent)
        return content.text

    with serving_rest(Script([answer(TEXT)], listings={"/v1/tasks": [TASK]})) as url:
        assert TEXT.text in asyncio.run(call(url))


def test_a_task_that_is_served_since_the_last_listing_is_called() -> None:
    listed = [TASK]

    async def call(url: str) -> None:
        async with (
            AsyncClient(url, max_retries=0) as service,
            Client(ToolServer(service).server()) as client,
        ):
            assert not (await client.call_tool("ocr", {"image": URL})).is_error
            with pytest.raises(MCPError, match="unknown tool 'captioning'; the tools are ocr"):
                await client.call_tool("captioning", {"image": URL})
            listed.append(TASK | {"id": "captioning"})
            assert not (await client.call_tool("captioning", {"image": URL})).is_error

    script = Script([answer(TEXT), answer(TEXT)], listings={"/v1/tasks": listed})
    with serving_rest(script) as url:
        asyncio.run(call(url))
    assert len(script.received) == 2
