"""The server of tools in the process of its client, over a scripted service."""

import asyncio

from mcp import Client
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
