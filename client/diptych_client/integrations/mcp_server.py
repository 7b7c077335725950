"""Server of the Model Context Protocol on stdin and stdout: calls become calls of the client.

It has a tool for each task that a served model offers, and `analyze`. A tool takes the image, the
parameters of its task, `min_score`, `min_precision` and `nms_iou` where it finds objects, and
optionally `models`. It returns one answer for each model:

    {"image": {"width", "height"}, "answers": [{"model", KIND, "finish_reason", "calibrated",
    "guarantee"} or {"model", "error"}]}

KIND is the result's: `text`, `detections`, `instances` or `text_regions`. `analyze` takes the steps
of an analysis, and each of its steps has such answers. The list of tools is that of the service at
the time; the service need not run before it is used. Needs the extra `mcp`.
"""

import asyncio
import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from mcp.server import Server, ServerRequestContext
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
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
from diptych_client.geometry import ImageSize
from diptych_client.integrations.outlines import simplified_ring
from diptych_client.requests import AnswerOptions, TaskParameters, read_image_file, split_list
from diptych_client.results import Analysis, Answer, InstancesResult, ModelFailure, Task, TextResult
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

_FORMS = "Absolute path of a JPEG, PNG or WebP file, or data:image/…;base64,…, or an http(s) URL."
_IMAGE = {"type": "string", "description": _FORMS}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_BOX = {**_NUMBERS, "description": "[x1, y1, x2, y2] in pixels"}
_POINTS = {"type": "array", "items": _NUMBERS, "description": "[x, y] in pixels"}
_SCORE = {"type": "number", "description": "0 to 1"}
_READS_ONLY = ToolAnnotations(read_only_hint=True, open_world_hint=False)
_SHARE = {"type": "number", "minimum": 0, "maximum": 1}
_OBJECT_OPTIONS = {
    "min_score": {**_SHARE, "description": "Minimum score of a returned object."},
    "min_precision": {
        **_SHARE,
        "description": "Only objects that are proved to be right so often, in place of min_score.",
    },
    "nms_iou": {
        **_SHARE,
        "description": "Of two objects of one label that overlap by more, drop the lower score.",
    },
}
_LABELLED = {"box": _BOX, "label": {"type": "string"}, "score": _SCORE}
_ITEM_PROPERTIES: Mapping[str, Mapping[str, object]] = {
    "detections": _LABELLED,
    "instances": {**_LABELLED, "polygons": {"type": "array", "items": _POINTS}},
    "text_regions": {"quad": _POINTS, "text": {"type": "string"}, "score": _SCORE},
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
    options = {} if task.result == "text" else _OBJECT_OPTIONS
    models = {
        "type": "array",
        "items": {"type": "string", "enum": list(task.models)},
        "minItems": 1,
        "description": (
            f"Models whose answers to return side by side. Default: {task.models[0]} alone."
        ),
    }
    return Tool(
        name=task.id,
        description=(
            f"{task.description}{only_one} Coordinates are pixels of the upright image, from its"
            " top left corner."
        ),
        input_schema={
            "type": "object",
            "properties": {
                "image": _IMAGE,
                **parameters["properties"],
                **options,
                "models": models,
            },
            "required": ["image", *parameters.get("required", ())],
            "additionalProperties": False,
        },
        output_schema=_output_schema(task.result),
        annotations=_READS_ONLY,
    )


def analyze_tool(tasks: Sequence[Task]) -> Tool:
    text = {"type": "string"}
    step = {
        "id": {**text, "description": "Name of the step."},
        "task": {**text, "enum": [task.id for task in tasks if task.models]},
        "each": {**text, "description": "Id of a step with boxes: ask about each of them."},
        "view": {
            **text,
            "enum": ["whole", "crop"],
            "description": "crop: show the box as a separate image, at full resolution.",
        },
        "max_each": {"type": "integer", "minimum": 1, "description": "Most boxes. Default: 50."},
        "models": {"type": "array", "items": text, "description": "Models to ask side by side."},
    }
    items = {"type": "object", "properties": step, "required": ["id", "task"]}
    answers = {"type": "array", "items": {"type": "object"}}
    rows = {"id": text, "task": text, "truncated": {"type": "boolean"}, "answers": answers}
    return Tool(
        name=ANALYZE,
        description=(
            "Many questions about one image at once. A step has the parameters of its task, as the"
            " tool of the task has them. With each it is asked about every box of another step:"
            " the box is its region, and {label} and {text} in its strings are filled. `of` in an"
            " answer is the index of the box in the result of that step."
        ),
        input_schema={
            "type": "object",
            "properties": {"image": _IMAGE, "steps": {"type": "array", "items": items}},
            "required": ["image", "steps"],
            "additionalProperties": False,
        },
        output_schema=_with_image(
            {"steps": {"type": "array", "items": {"type": "object", "properties": rows}}}
        ),
        annotations=_READS_ONLY,
    )


def _output_schema(kind: str) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "string"}
    if kind in _ITEM_PROPERTIES:
        properties = _ITEM_PROPERTIES[kind]
        item = {"type": "object", "properties": properties, "required": list(properties)}
        result = {"type": "array", "items": item}
    cut_off = "length: the answer is cut off"
    calibrated = "true: scores are probabilities; false: they only rank"
    proved = "with min_precision: what is proved, and the number of objects left out"
    error = "why this model has no answer: code, message"
    answer = {
        "model": {"type": "string"},
        kind: result,
        "finish_reason": {"enum": ["stop", "length"], "description": cut_off},
        "calibrated": {"type": "boolean", "description": calibrated},
        "guarantee": {"type": "object", "description": proved},
        "error": {"type": "object", "description": error},
    }
    row = {"type": "object", "properties": answer, "required": ["model"]}
    return _with_image({"answers": {"type": "array", "items": row}})


def _with_image(properties: Mapping[str, object]) -> dict[str, Any]:
    """Return the schema of an object with the size of the image and `properties`."""
    sides = {"width": {"type": "integer"}, "height": {"type": "integer"}}
    every = {"image": {"type": "object", "properties": sides}, **properties}
    return {"type": "object", "properties": every, "required": list(every)}


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """Arguments of a call."""

    image: str | bytes
    models: Sequence[str] | None
    parameters: TaskParameters
    options: AnswerOptions
    steps: Sequence[Mapping[str, Any]]  # empty for a task

    @classmethod
    def parse(cls, tool: Tool, arguments: Mapping[str, Any]) -> Self:
        """Read the image if it is a file; raise `OSError` or `ValueError` for a bad argument.

        A list may be one comma-separated text.
        """
        properties = tool.input_schema["properties"]
        lists = {name for name, schema in properties.items() if schema["type"] == "array"}
        texts = {name for name in lists if isinstance(arguments.get(name), str)}
        arguments = {**arguments, **{name: [*split_list(arguments[name])] for name in texts}}
        error = best_match(Draft202012Validator(tool.input_schema).iter_errors(arguments))
        if error is not None:
            place = ".".join(map(str, error.absolute_path))
            raise ValueError(": ".join(filter(None, (place, error.message))))
        parameters = TaskParameters(**_fields_of(TaskParameters, arguments))
        options = AnswerOptions(**_fields_of(AnswerOptions, arguments))
        image = _image(arguments["image"])
        steps = arguments.get("steps", ())
        return cls(image, arguments.get("models"), parameters, options, steps)


def _fields_of(kind: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = arguments.keys() & {field.name for field in fields(kind)}
    return {name: arguments[name] for name in names}


def _image(text: str) -> str | bytes:
    if text.startswith(("http://", "https://")):
        return text
    if not text.startswith("data:"):
        path = Path(text).expanduser()
        if not path.is_file():
            allowed = "a file, a data: URL or an http(s) URL"
            raise ValueError(f"image must be {allowed}; there is no file {path}")
        return read_image_file(path)
    header, _, data = text.partition(",")
    if not header.endswith(";base64"):
        raise ValueError("image is a data: URL without base64; it must be data:image/…;base64,…")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"image is not base64: {error}") from error


def content_of(image: ImageSize, answers: Sequence[Answer | ModelFailure]) -> dict[str, Any]:
    """Return answers as structured content: rounded, without fields that agents do not need."""
    rows: list[dict[str, Any]] = []
    for answer in answers:
        if isinstance(answer, ModelFailure):
            error = {"code": answer.error.code, "message": answer.error.message}
            rows.append({"model": answer.model, "error": error})
            continue
        ((kind, result),) = to_json(answer)["result"].items()
        if isinstance(answer.result, InstancesResult):
            for item, instance in zip(result, answer.result.instances, strict=True):
                rings = instance.polygons_xy or ()
                item["polygons"] = [simplified_ring(ring, _OUTLINE_TOLERANCE_PX) for ring in rings]
        if not isinstance(answer.result, TextResult):
            for item in result:
                score = round(item["score"], _SCORE_DECIMALS)
                item.update({name: _rounded(value) for name, value in item.items()}, score=score)
        cut: dict[str, object] = {
            "finish_reason": answer.finish_reason,
            "calibrated": answer.calibrated,
        }
        if answer.guarantee is not None:
            cut["guarantee"] = asdict(answer.guarantee)
        rows.append({"model": answer.model, kind: result, **cut})
    return {"image": asdict(image), "answers": rows}


def analysis_content(analysis: Analysis) -> dict[str, Any]:
    """Return the answers of all steps as `content_of` does."""
    steps: list[dict[str, Any]] = []
    for step in analysis.steps:
        outcomes = [answer.outcome for answer in step.answers]
        rows = content_of(analysis.image, outcomes)["answers"]
        for row, answer in zip(rows, step.answers, strict=True):
            if answer.of is not None:
                row["of"] = answer.of
        about = {"id": step.id, "task": step.task, "truncated": step.truncated}
        steps.append({**about, "answers": rows})
    return {"image": asdict(analysis.image), "steps": steps}


def _rounded(value: Any) -> Any:
    """Return labels unchanged, and numbers in lists of any depth to a tenth of a pixel."""
    if isinstance(value, list | tuple):
        return [_rounded(element) for element in value]
    return round(value, _DECIMALS) if isinstance(value, float) else value


async def serve(client: AsyncClient) -> None:
    server = ToolServer(client).server()
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


class ToolServer:
    """Lists and calls the tools of one service. The tools are those of the last listing."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._tools: dict[str, Tool] = {}

    def server(self) -> Server[Any]:
        return Server(
            "diptych",
            version=version("diptych-client"),
            title="Diptych",
            instructions=_INSTRUCTIONS,
            on_list_tools=self._list,
            on_call_tool=self._call,
        )

    async def _list(
        self, _context: _Context, _params: PaginatedRequestParams | None
    ) -> ListToolsResult:
        try:
            tasks = await self._client.tasks()
        except DiptychError as error:
            message = f"cannot list the tasks of the service: {error}"
            raise MCPError(INTERNAL_ERROR, message) from error
        self._tools = {task.id: tool_of(task) for task in tasks if task.models}
        self._tools[ANALYZE] = analyze_tool(tasks)
        return ListToolsResult(tools=list(self._tools.values()))

    async def _call(self, context: _Context, params: CallToolRequestParams) -> CallToolResult:
        if params.name not in self._tools:
            await self._list(context, None)
        if params.name not in self._tools:
            known = ", ".join(self._tools)
            raise MCPError(INVALID_PARAMS, f"unknown tool {params.name!r}; the tools are {known}")
        tool = self._tools[params.name]
        try:
            # it may read a file
            call = await asyncio.to_thread(ToolArguments.parse, tool, params.arguments or {})
            if tool.name == ANALYZE:
                analysis = await self._client.analyze(call.image, call.steps)
                return _answered(analysis_content(analysis))
            question = (call.image, tool.name, call.parameters)
            if call.models is None:
                answer = await self._client.predict(*question, options=call.options)
                return _answered(content_of(answer.image, [answer]))
            models = call.models
            comparison = await self._client.compare(*question, models=models, options=call.options)
        except (DiptychError, OSError, ValueError) as error:
            return _failed(str(error))
        if any(isinstance(answer, Answer) for answer in comparison.answers):
            return _answered(content_of(comparison.image, comparison.answers))
        causes = []
        for failure in comparison.answers:
            if isinstance(failure, ModelFailure):
                detail = failure.error
                causes.append(f"{failure.model}: {detail.code}: {detail.message}")
        return _failed("; ".join(causes))


def _answered(content: dict[str, Any]) -> CallToolResult:
    """Return structured content, also as text, which all hosts read."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return CallToolResult(content=[TextContent(type="text", text=text)], structured_content=content)


def _failed(message: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=message)], is_error=True)
