"""Server of the Model Context Protocol on stdin and stdout: calls become calls of the client.

It has a tool for each task that a served model offers, and `analyze`. A tool takes the image, the
parameters of its task, `min_score`, `min_precision` and `nms_iou` where it finds objects, and
optionally `models`. It returns one answer for each model:

    {"image": {"width", "height"}, "answers": [{"model", KIND, "finish_reason", "calibrated",
    "guarantee"} or {"model", "error"}]}

KIND is the result's: `text`, `detections`, `instances` or `text_regions`. `analyze` takes the steps
of an analysis, and each of its steps has such answers. The service validates the arguments; it need
not run before it is used. Needs the extra `mcp`.
"""

import asyncio
import base64
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    Tool,
    ToolAnnotations,
)

from diptych_client.clients.async_client import AsyncClient
from diptych_client.errors import DiptychError
from diptych_client.integrations.outlines import simplified_ring
from diptych_client.requests import read_image_file, split_list
from diptych_client.results import Analysis, Answer, Comparison, InstancesResult, ModelFailure, Task
from diptych_client.transports.messages import to_json

_INSTRUCTIONS = (
    "Vision models look at an image: they describe it, find and segment objects, read text, answer"
    " questions. Each tool is one task; `models` compares the answers of several models; `analyze`"
    " asks many questions about one image."
)
_Context = ServerRequestContext[Any]
ANALYZE = "analyze"  # the name of its tool

# An agent pays for every point: the outline of a mask has one at each corner of its pixels.
_OUTLINE_TOLERANCE_PX = 1.0
_DECIMALS = 1  # pixel coordinates
_SCORE_DECIMALS = 3
_ANSWER_FIELDS = (
    *("text", "detections", "instances", "text_regions"),
    *("finish_reason", "calibrated", "guarantee", "error"),
)

_FORMS = "Absolute path of a JPEG, PNG or WebP file, or data:image/…;base64,…, or an http(s) URL."
_TEXT = {"type": "string"}
_IMAGE = {**_TEXT, "description": _FORMS}
_READS_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_OBJECT_OPTIONS = {
    "min_score": {**_SHARE, "description": "Minimum score of an object."},
    "min_precision": {**_SHARE, "description": "Proved share of right objects."},
    "nms_iou": {**_SHARE, "description": "Maximum IoU of two objects of one label."},
}


def tool_of(task: Task) -> Tool:
    """Return the tool of a task that at least one model offers.

    Its schema is the task's with the image and the models, without `oneOf`, which the tool APIs of
    several vendors refuse at the top level: the description has it.
    """
    parameters: Any = task.parameters
    choices: list[str] = []
    for choice in parameters.get("oneOf", ()):
        choices += choice["required"]
    only_one = f" Give exactly one of {', '.join(choices)}." if choices else ""
    models = {
        "type": "array",
        "items": {**_TEXT, "enum": list(task.models)},
        "description": f"Models to answer side by side. Default: {task.models[0]} alone.",
    }
    properties = {"image": _IMAGE, **parameters["properties"]}
    if task.result != "text":
        properties |= _OBJECT_OPTIONS
    properties["models"] = models
    description = f"{task.description}{only_one} Coordinates are pixels of the upright image."
    return _tool(task.id, description, properties, ["image", *parameters.get("required", ())])


def analyze_tool(tasks: Iterable[Task]) -> Tool:
    description = (
        "Many questions about one image at once. A step has a name (id), a task, the parameters of"
        " the task as its tool has them, and optionally models. With each, the id of a step with"
        " boxes, it is asked about every box of that step, at most max_each (50): the box is its"
        " region, or with view: crop a separate image, and {label} and {text} in its strings are"
        " filled. `of` in an answer is the index of the box."
    )
    names = [task.id for task in tasks if task.models]
    step = {
        "type": "object",
        "properties": {"id": _TEXT, "task": {**_TEXT, "enum": names}},
        "required": ["id", "task"],
    }
    properties = {"image": _IMAGE, "steps": {"type": "array", "items": step}}
    return _tool(ANALYZE, description, properties, list(properties))


def _tool(name: str, description: str, properties: Mapping[str, Any], required: list[str]) -> Tool:
    schema = {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }
    return Tool(name=name, description=description, input_schema=schema, annotations=_READS_ONLY)


def read_image(text: str) -> str | bytes:
    """Return a URL unchanged, else the file; raise `OSError` or `ValueError`."""
    if text.startswith(("http://", "https://")):
        return text
    if text.startswith("data:"):
        return base64.b64decode(text.partition(";base64,")[2], validate=True)
    return read_image_file(Path(text).expanduser())


def answer_rows(answers: Iterable[Answer | ModelFailure]) -> list[dict[str, Any]]:
    """Return answers rounded and without fields that agents do not need."""
    rows = []
    for answer in answers:
        body = to_json(answer)
        if isinstance(answer, Answer):
            result = body["result"]
            if isinstance(answer.result, InstancesResult):
                _simplify(result["instances"])
            body |= _rounded(result, _DECIMALS)
        row = {"model": answer.model}
        row |= {name: body[name] for name in _ANSWER_FIELDS if name in body}
        rows.append(row)
    return rows


def _simplify(instances: Iterable[dict[str, Any]]) -> None:
    for instance in instances:
        rings = instance.get("polygons", ())
        instance["polygons"] = [simplified_ring(ring, _OUTLINE_TOLERANCE_PX) for ring in rings]


def _rounded(value: Any, decimals: int) -> Any:
    match value:
        case float():
            return round(value, decimals)
        case list() | tuple():
            return [_rounded(element, decimals) for element in value]
        case dict():
            row = {name: _rounded(part, decimals) for name, part in value.items()}
            if "score" in value:
                row["score"] = round(value["score"], _SCORE_DECIMALS)
            return row
    return value


def analysis_steps(analysis: Analysis) -> list[dict[str, Any]]:
    steps = []
    for step in analysis.steps:
        rows = answer_rows([answer.outcome for answer in step.answers])
        for row, answer in zip(rows, step.answers, strict=True):
            if answer.of is not None:
                row["of"] = answer.of
        about = {"id": step.id, "task": step.task, "truncated": step.truncated}
        steps.append({**about, "answers": rows})
    return steps


async def call_tool(
    client: AsyncClient, tool: str, arguments: Mapping[str, Any]
) -> Answer | Comparison | Analysis:
    """Return the answers; raise `DiptychError`, `OSError`, `ValueError` or `TypeError`."""
    parameters = dict(arguments)
    image = await asyncio.to_thread(read_image, str(parameters.pop("image", "")))
    if tool == ANALYZE:
        return await client.analyze(image, parameters.get("steps", ()))
    models = parameters.pop("models", None)
    names = parameters.keys() & _OBJECT_OPTIONS.keys()
    options = {name: parameters.pop(name) for name in names}
    if models is None:
        return await client.predict(image, tool, parameters, options=options)
    models = split_list(models) if isinstance(models, str) else models
    return await client.compare(image, tool, parameters, models=models, options=options)


def tool_result(reply: Answer | Comparison | Analysis) -> CallToolResult:
    """Return structured content, also as text, which all hosts read."""
    content: dict[str, Any] = {"image": asdict(reply.image)}
    has_answer = True
    if isinstance(reply, Analysis):
        content["steps"] = analysis_steps(reply)
    else:
        answers = reply.answers if isinstance(reply, Comparison) else (reply,)
        content["answers"] = answer_rows(answers)
        has_answer = any(isinstance(answer, Answer) for answer in answers)
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=content,
        is_error=not has_answer,
    )


def tool_server(client: AsyncClient) -> Server[Any]:
    """Return a server of the tools that the service has at the time of a listing."""

    async def list_tools(_context: _Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        try:
            tasks = await client.tasks()
        except DiptychError as error:
            message = f"cannot list the tasks of the service: {error}"
            raise MCPError(INTERNAL_ERROR, message) from error
        tools = [tool_of(task) for task in tasks if task.models]
        return ListToolsResult(tools=[*tools, analyze_tool(tasks)])

    async def call(_context: _Context, params: CallToolRequestParams) -> CallToolResult:
        try:
            return tool_result(await call_tool(client, params.name, params.arguments or {}))
        except (DiptychError, OSError, ValueError, TypeError) as error:
            content = TextContent(type="text", text=str(error))
            return CallToolResult(content=[content], is_error=True)

    return Server(
        "diptych",
        version=version("diptych-client"),
        title="Diptych",
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call,
    )


async def serve(connect: Callable[[], AsyncClient]) -> None:
    async with connect() as client, stdio_server() as (read, write):
        server = tool_server(client)
        await server.run(read, write, server.create_initialization_options())
