"""Server of the Model Context Protocol on stdin and stdout: calls become calls of the client.

It has a tool for each task that a served model offers. A tool takes the image, the parameters of
its task, `min_score`, `min_precision` and `nms_iou` where it finds objects, and optionally
`models`. It returns one answer for each model:

    {"image": {"width", "height"}, "answers": [{"model", KIND, "finish_reason", "calibrated",
    "guarantee"} or {"model", "error"}]}

KIND is the result's: `text`, `detections`, `instances` or `text_regions`. The service validates the
arguments; it need not run before it is used. Needs the extra `mcp`.
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
from diptych_client.conversion import ALLOWED, read_image_file
from diptych_client.errors import DiptychError
from diptych_client.integrations.outlines import simplified_ring
from diptych_client.json_values import to_json
from diptych_client.requests import split_list
from diptych_client.results import Answer, Comparison, ModelFailure, Task

_INSTRUCTIONS = (
    "Vision models look at an image: they describe it, find and segment objects, read text, answer"
    " questions. Each tool is one task; `models` compares the answers of several models."
)
_Context = ServerRequestContext[Any]

# An agent pays for every point: the outline of a mask has one at each corner of its pixels.
_OUTLINE_TOLERANCE_PX = 1.0
_DECIMALS = 1  # pixel coordinates
_SCORE_DECIMALS = 3
_ANSWER_FIELDS = (
    *("text", "detections", "instances", "text_regions"),
    *("finish_reason", "calibrated", "guarantee", "error"),
)

_FORMS = f"Absolute path of {ALLOWED}, or data:image/…;base64,…, or an http(s) URL."
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
    schema = {
        "type": "object",
        "properties": properties,
        "required": ["image", *parameters.get("required", ())],
        "additionalProperties": False,
    }
    description = f"{task.description}{only_one} Coordinates are pixels of the upright image."
    return Tool(name=task.id, description=description, input_schema=schema, annotations=_READS_ONLY)


def read_image(text: str) -> str | bytes:
    """Return a URL unchanged, else the file; raise `OSError`, `ValueError` or `RuntimeError`."""
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
            for instance in body["result"].get("instances", ()):
                rings = instance.get("polygons", ())
                instance["polygons"] = [
                    simplified_ring(ring, _OUTLINE_TOLERANCE_PX) for ring in rings
                ]
            body |= _rounded(body["result"], _DECIMALS)
        row = {"model": answer.model}
        row |= {name: body[name] for name in _ANSWER_FIELDS if name in body}
        rows.append(row)
    return rows


def _rounded(value: Any, decimals: int) -> Any:
    match value:
        case float():
            return round(value, decimals)
        case list() | tuple():
            return [_rounded(element, decimals) for element in value]
        case dict():
            row = {}
            for name, part in value.items():
                row[name] = _rounded(part, _SCORE_DECIMALS if name == "score" else decimals)
            return row
    return value


async def call_tool(
    client: AsyncClient, tool: str, arguments: Mapping[str, Any]
) -> Answer | Comparison:
    """Return the answers; raise `DiptychError`, or what `read_image` does, or `TypeError`."""
    parameters = dict(arguments)
    image = await asyncio.to_thread(read_image, str(parameters.pop("image", "")))
    models = parameters.pop("models", None)
    names = parameters.keys() & _OBJECT_OPTIONS.keys()
    options = {name: parameters.pop(name) for name in names}
    if models is None:
        return await client.predict(image, tool, parameters, options=options)
    models = split_list(models) if isinstance(models, str) else models
    return await client.compare(image, tool, parameters, models=models, options=options)


def tool_result(reply: Answer | Comparison) -> CallToolResult:
    """Return structured content, also as text, which all hosts read."""
    answers = reply.answers if isinstance(reply, Comparison) else (reply,)
    content = {"image": asdict(reply.image), "answers": answer_rows(answers)}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(
        content=[TextContent(type="text", text=text)],
        structured_content=content,
        is_error=not any(isinstance(answer, Answer) for answer in answers),
    )


def tool_server(client: AsyncClient) -> Server[Any]:
    """Return a server of the tools that the service has at the time of a listing."""

    async def list_tools(_context: _Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        try:
            tasks = await client.tasks()
        except DiptychError as error:
            message = f"cannot list the tasks of the service: {error}"
            raise MCPError(INTERNAL_ERROR, message) from error
        return ListToolsResult(tools=[tool_of(task) for task in tasks if task.models])

    async def call(_context: _Context, params: CallToolRequestParams) -> CallToolResult:
        try:
            return tool_result(await call_tool(client, params.name, params.arguments or {}))
        except (DiptychError, OSError, ValueError, RuntimeError, TypeError) as error:
            content = TextContent(type="text", text=str(error)[:2000])
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
