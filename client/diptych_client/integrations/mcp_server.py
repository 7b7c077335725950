"""Server of the Model Context Protocol on stdin and stdout: calls become calls of the client.

Needs the extra `mcp`. The list of tools is that of the service at the time; the service need not
run before it is used.
"""

import asyncio
import json
from importlib.metadata import version
from typing import Any

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
)

from diptych_client.clients.async_client import AsyncClient
from diptych_client.errors import DiptychError
from diptych_client.integrations.mcp_tools import (
    ANALYZE,
    ToolArguments,
    analysis_content,
    analyze_tool,
    content_of,
    tool_of,
)
from diptych_client.results import Answer, ModelFailure

_INSTRUCTIONS = (
    "Vision models look at an image: they describe it, find and segment objects, read text, answer"
    " questions. Each tool is one task; `models` compares the answers of several models; `analyze`"
    " asks many questions about one image."
)
_Context = ServerRequestContext[Any]


async def serve(client: AsyncClient) -> None:
    """Serve until stdin ends."""
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
