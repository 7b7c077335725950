"""The server of tools in the process of its client, over a scripted service."""

import asyncio

import pytest
from mcp import Client, MCPError
from mcp_types import TextContent

from diptych_client import AsyncClient
from diptych_client.integrations.mcp_server import ToolServer
from tests.support.client_answers import TEXT, answer
from tests.support.scripted_services import Script, serving_rest

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
