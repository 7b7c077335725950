"""client.py is written from async_client.py."""

from tests.support.blocking_client import WRITTEN, blocking_client


def test_the_client_that_blocks_is_the_one_for_asyncio_without_it() -> None:
    command = "python -m tests.support.blocking_client"
    assert WRITTEN.read_text(encoding="utf-8") == blocking_client(), f"write it again: {command}"
