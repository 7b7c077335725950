"""How a runner's process is reached: over BentoML's session of a dependency on this host, or over one to a URL."""

import math
import sys
from http import HTTPStatus
from typing import Any, Protocol

import aiohttp

from runners.builds import BUILD_HEADER

# Below the 5 s after which a runner's uvicorn closes an idle connection: a request never meets one that just closes.
_KEEP_ALIVE_S = 4.0
_CONNECT_S = 2.0  # a host that is gone refuses nothing


class Connection(Protocol):
    """The way to one process."""

    async def session(self) -> aiohttp.ClientSession:
        """Return the session whose paths are the process's."""
        ...

    async def is_ready(self, timeout: int) -> bool:
        """Say whether the process answers within `timeout` seconds that it is ready; raise aiohttp's errors."""
        ...

    async def close(self) -> None:
        """End it."""
        ...


class LocalConnection:
    """To a dependency of the gateway's service. `client` is BentoML's asynchronous client of it."""

    def __init__(self, client: Any) -> None:
        self._client = client
        client._session_manager.max_requests = sys.maxsize
        client._session_manager.max_age = math.inf

    async def session(self) -> aiohttp.ClientSession:
        """Return BentoML's."""
        session: aiohttp.ClientSession = await self._client._session_manager.get_session()
        return session

    async def is_ready(self, timeout: int) -> bool:
        """Ask by BentoML's probe."""
        is_ready: bool = await self._client.is_ready(timeout)
        return is_ready

    async def close(self) -> None:
        """Leave it to BentoML, which closes its own."""


class RemoteConnection:
    """To a process at `url`, such as `http://10.0.0.1:3000`, that has loaded the build of `build_key`."""

    def __init__(self, url: str, build_key: str, timeout_s: float) -> None:
        self._url = url
        self._headers = {BUILD_HEADER: build_key}
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def session(self) -> aiohttp.ClientSession:
        """Return the one session, begun in the loop that asks first."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                self._url,
                headers=self._headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
                timeout=aiohttp.ClientTimeout(self._timeout_s, sock_connect=_CONNECT_S),
            )
        return self._session

    async def is_ready(self, timeout: int) -> bool:
        """Ask by its /readyz."""
        session = await self.session()
        async with session.get("/readyz", timeout=aiohttp.ClientTimeout(timeout)) as response:
            return response.status == HTTPStatus.OK

    async def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            await self._session.close()
