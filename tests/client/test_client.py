"""Both clients have the same methods; the scheme of the URL selects the transport."""

import inspect

import pytest

from diptych_client import AsyncClient, Client, InvalidRequest

METHODS = (
    *("__init__", "predict", "predict_many", "stream", "compare", "analyze", "image"),
    *("models", "tasks", "close"),
)
GENERATORS = ("stream", "predict_many", "image")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_same_parameters_in_both_clients(name: str) -> None:
    one, other = (inspect.signature(getattr(client, name)) for client in (Client, AsyncClient))
    assert one.parameters == other.parameters
    assert name in ("__init__", *GENERATORS) or one.return_annotation == other.return_annotation


def test_the_list_above_is_complete() -> None:
    for client in (Client, AsyncClient):
        assert {name for name in vars(client) if not name.startswith("_")} == {*METHODS} - {
            "__init__"
        }


@pytest.mark.parametrize(
    ("url", "transport"),
    [
        ("http://localhost:3000", "RestTransport"),
        ("https://example.org/behind/a/proxy", "RestTransport"),
        ("grpc://localhost:3001", "GrpcTransport"),
        ("grpcs://example.org:443/", "GrpcTransport"),
    ],
)
def test_the_scheme_selects_the_transport(url: str, transport: str) -> None:
    with Client(url) as client:
        assert type(client._transport).__name__ == transport


@pytest.mark.parametrize(
    "url", ["localhost:3000", "ftp://a:1", "grpc://localhost", "grpc://a:1/path", "http://", ""]
)
def test_an_invalid_url_is_rejected_with_the_allowed_forms(url: str) -> None:
    with pytest.raises(InvalidRequest, match="grpcs://HOST:PORT, got ") as caught:
        Client(url)
    assert (caught.value.code, caught.value.param) == ("invalid_request", "url")
