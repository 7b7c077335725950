"""One interface: what the one client can, the other can in the same words; addresses choose the transport."""

import inspect

import pytest

from client import AsyncClient, Client
from client.transports import transport_to

METHODS = ("__init__", "predict", "stream", "compare", "models", "tasks", "close")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_same_with_and_without_asyncio(name: str) -> None:
    one, other = (inspect.signature(getattr(client, name)) for client in (Client, AsyncClient))
    assert one.parameters == other.parameters
    assert name in ("stream", "__init__") or one.return_annotation == other.return_annotation


def test_no_method_is_missing_from_the_list_above() -> None:
    for client in (Client, AsyncClient):
        assert {name for name in vars(client) if not name.startswith("_")} == {*METHODS} - {"__init__"}


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("http://localhost:3000", "RestTransport"),
        ("https://example.org/behind/a/proxy", "RestTransport"),
        ("grpc://localhost:3001", "GrpcTransport"),
        ("grpcs://example.org:443/", "GrpcTransport"),
    ],
)
def test_the_scheme_chooses_the_interface(url: str, transport: str) -> None:
    opened = transport_to(url, None)
    assert type(opened).__name__ == transport
    opened.close()


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://a:1", "grpc://localhost", "grpc://a:1/path", "http://", ""])
def test_an_address_that_is_none_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="grpcs://HOST:PORT, not "):
        transport_to(url, None)
