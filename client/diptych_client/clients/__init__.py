"""The clients: one that blocks, one for asyncio, and the calls and retries that both share."""
