"""Clients of the APIs over the real core, and checks of every HTTP response."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from jsonschema import Draft202012Validator
from PIL import Image

from service.admission.api_keys import ApiKeys
from service.http.boundary import STATUSES, RestBoundary
from service.http.middleware import Middleware
from service.http_app import rest_app
from service.inference.core import Core
from service.rpc.server import GrpcServer
from service.settings import Settings
from service.web.openapi import openapi_document
from tests.support.fake_service import data_url, encoded, make_core, served_models
from tests.support.running_service import free_port

MAX_BODY_BYTES = 50_000
SETTINGS = Settings(max_body_bytes=MAX_BODY_BYTES, request_timeout_s=30)
SMALL_PNG = encoded(Image.new("RGB", (8, 8), (200, 30, 30)))
OCR = {"image": data_url(SMALL_PNG), "task": "ocr"}
COMPONENTS = openapi_document(served_models())["components"]


@dataclass(frozen=True, slots=True)
class Client:
    """A client of an app in this process; an exception that escapes the app fails the test."""

    boundary: RestBoundary

    def http(self, headers: Mapping[str, str]) -> httpx.AsyncClient:
        """Return a client of the app for calls within one event loop."""
        transport = httpx.ASGITransport(self.app())
        return httpx.AsyncClient(transport=transport, base_url="http://diptych", headers=headers)

    def app(self) -> Middleware:
        return Middleware(rest_app(self.boundary), self.boundary)

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.http({}) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.send("GET", path, **options)

    def predict(self, fields: Mapping[str, object], **headers: str) -> httpx.Response:
        return self.send("POST", "/v1/predict", json=fields, headers=as_headers(headers))

    def compare(self, fields: Mapping[str, object], **headers: str) -> httpx.Response:
        return self.send("POST", "/v1/compare", json=fields, headers=as_headers(headers))


def as_headers(names: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in names.items()}


def client(
    core: Core | None = None, keys: ApiKeys | None = None, values: Settings = SETTINGS
) -> Client:
    boundary = RestBoundary(values)
    boundary.start(core or make_core(), keys or ApiKeys(None))
    return Client(boundary)


def json_scope(path: str, body: bytes) -> dict[str, Any]:
    """Return the scope of a POST of JSON, for an app that is called without a server."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {"type": "http", "method": "POST", "path": path, "headers": headers}


def fits(document: object, name: str) -> bool:
    """Return True if a body matches a schema of /openapi.json; raise otherwise."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": COMPONENTS}
    Draft202012Validator(schema).validate(document)
    return True


def error_of(response: httpx.Response) -> dict[str, Any]:
    """Return the error of a response, checked against schema, status and headers."""
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert fits(document, "ErrorJson")
    error: dict[str, Any] = document["error"]
    assert response.status_code == STATUSES[error["code"]]
    assert error["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return error


async def _ready() -> bool:
    return True


@asynccontextmanager
async def grpc_channel(
    core: Core, api_keys: ApiKeys, **values: Any
) -> AsyncIterator[grpc.aio.Channel]:
    settings = Settings(grpc_port=free_port(), **values)
    server = GrpcServer(core, api_keys, settings, _ready)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel:
            yield channel
    finally:
        await server.stop(0)
