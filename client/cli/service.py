"""Where the service is, as the command line was told."""

from dataclasses import dataclass

from client.async_client import AsyncClient
from client.sync_client import Client


@dataclass(frozen=True, slots=True)
class Service:
    """An address, and how it is called."""

    url: str
    api_key: str | None
    timeout_s: float
    max_retries: int

    def client(self) -> Client:
        """Return a client."""
        return Client(self.url, api_key=self.api_key, timeout_s=self.timeout_s, max_retries=self.max_retries)

    def async_client(self) -> AsyncClient:
        """Return a client of the running event loop."""
        return AsyncClient(self.url, api_key=self.api_key, timeout_s=self.timeout_s, max_retries=self.max_retries)
