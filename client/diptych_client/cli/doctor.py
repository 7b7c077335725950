"""The command `doctor`: what of a service can be reached, and where the time of a request goes."""

import io
import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from PIL import Image, ImageDraw
from rich.console import Console

from diptych_client.cli.options import ConnectionOptions
from diptych_client.cli.terminal import echo, table_view
from diptych_client.clients.client import Client
from diptych_client.errors import DiptychError

_CONNECT_S = 5.0
_MAX_SKEW_S = 30.0
_PORTS = {"http": 80, "https": 443, "grpc": 3001, "grpcs": 443}


def examine(connection: ConnectionOptions, as_json: bool) -> bool:
    """Print each check; return True if all are right. A failure makes some others useless."""
    checks: list[dict[str, object]] = []

    def check(name: str, run: Callable[[], str]) -> bool:
        try:
            checks.append({"name": name, "is_right": True, "found": run()})
        except (DiptychError, OSError, ValueError, LookupError) as error:
            checks.append({"name": name, "is_right": False, "found": str(error)})
        return bool(checks[-1]["is_right"])

    if check("connection", lambda: connected(connection.url)):
        if connection.url.startswith("http"):
            check("version", lambda: version_of(connection.url))
            check("clock", lambda: clock_of(connection.url))
        with connection.client() as client:
            if check("models", lambda: models_of(client)):
                check("tasks", lambda: tasks_of(client))
                check("predict", lambda: predicted(client))
    settings = f"deadline {connection.timeout_s:g} s, {connection.max_retries} retries"
    key = "with an API key" if connection.api_key else "without an API key"
    limit = f"images above {connection.max_pixels:,} pixels are downscaled"
    check("this client", lambda: f"{settings}, {key}, {limit}")
    if as_json:
        echo(json.dumps(checks, indent=2, ensure_ascii=False))
    else:
        rows = []
        for row in checks:
            rows.append(
                (str(row["name"]), "ok" if row["is_right"] else "failed", str(row["found"]))
            )
        Console().print(table_view(("check", "result", "found"), rows))
    return all(row["is_right"] for row in checks)


def connected(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme, 0)
    start_s = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            took_ms = 1000 * (time.monotonic() - start_s)
    except OSError as error:
        hint = "is the service started (make serve), and is this its port?"
        raise OSError(f"TCP to {host} port {port}: {error.strerror or error}; {hint}") from error
    return f"{host} port {port} in {took_ms:.1f} ms"


def _get(url: str, path: str) -> httpx.Response:
    try:
        response = httpx.get(f"{url.rstrip('/')}{path}", timeout=_CONNECT_S)
    except httpx.HTTPError as error:
        hint = "; is this the gRPC port? its URL is grpc://HOST:PORT"
        raise OSError(f"GET {path}: {error}{hint}") from error
    if not response.is_success:
        raise OSError(f"GET {path}: status {response.status_code}")
    return response


def version_of(url: str) -> str:
    document = _get(url, "/openapi.json").json()
    return f"{document['info']['title']} {document['info']['version']}"


def clock_of(url: str) -> str:
    """Compare the clocks, which deadlines and signed requests need."""
    skew_s = float("nan")
    with suppress(KeyError):
        date = parsedate_to_datetime(_get(url, "/livez").headers["date"])
        skew_s = (datetime.now(UTC) - date).total_seconds()
    if abs(skew_s) > _MAX_SKEW_S:
        raise ValueError(f"this host is {skew_s:.0f} s ahead of the service: synchronize both")
    return f"within {_MAX_SKEW_S:.0f} s of the service" if skew_s == skew_s else "not told"


def models_of(client: Client) -> str:
    models = client.models()
    return ", ".join(f"{model.id} ({model.precision})" for model in models)


def tasks_of(client: Client) -> str:
    return ", ".join(task.id for task in client.tasks() if task.models)


def predicted(client: Client) -> str:
    tasks = [task for task in client.tasks() if task.models and not task.parameters.get("required")]
    task = min(tasks, key=lambda task: task.id != "captioning")
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((90, 50, 230, 190), fill="orange")
    file = io.BytesIO()
    image.save(file, "PNG")
    start_s = time.monotonic()
    answer = client.predict(file.getvalue(), task.id)
    total_ms = 1000 * (time.monotonic() - start_s)
    stages = asdict(answer.timings_ms)
    in_service_ms = stages.pop("total")
    long_stages = [f"{name} {value:.0f}" for name, value in stages.items() if value >= 0.5]
    network_ms = max(0.0, total_ms - in_service_ms)
    times = f"{total_ms:.0f} ms: network and client {network_ms:.0f}, {', '.join(long_stages)}"
    return f"{task.id} by {answer.model} in {times}"
