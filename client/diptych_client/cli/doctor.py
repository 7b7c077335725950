"""The command `doctor`: what of a service can be reached, and where the time of a request goes."""

import io
import json
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from urllib.parse import urlsplit

from PIL import Image, ImageDraw
from rich.console import Console

from diptych_client.cli.options import ConnectionOptions
from diptych_client.cli.terminal import echo, table_view
from diptych_client.clients.client import Client
from diptych_client.errors import DiptychError

_CONNECT_S = 5.0
_PORTS = {"http": 80, "https": 443}


def examine(connection: ConnectionOptions, as_json: bool) -> bool:
    """Print each check up to the first that fails; return True if none does."""
    rows: list[dict[str, object]] = []
    with connection.client() as client:
        checks: dict[str, Callable[[], str]] = {
            "connection": lambda: connected(connection.url),
            "models": lambda: ", ".join(model.id for model in client.models()),
            "predict": lambda: predicted(client),
        }
        for name, check in checks.items():
            try:
                rows.append({"name": name, "is_right": True, "found": check()})
            except (DiptychError, OSError, ValueError, LookupError) as error:
                rows.append({"name": name, "is_right": False, "found": str(error)})
                break
    if as_json:
        echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        lines = []
        for row in rows:
            result = "ok" if row["is_right"] else "failed"
            lines.append((str(row["name"]), result, str(row["found"])))
        Console().print(table_view(("check", "result", "found"), lines))
    return bool(rows[-1]["is_right"])


def connected(url: str) -> str:
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0))
    start_s = time.monotonic()
    try:
        socket.create_connection(address, timeout=_CONNECT_S).close()
    except OSError as error:
        hint = "is the service started (make serve), and is this its port?"
        raise OSError(f"TCP to {address[0]} port {address[1]}: {error}; {hint}") from error
    return f"{address[0]} port {address[1]} in {1000 * (time.monotonic() - start_s):.1f} ms"


def predicted(client: Client) -> str:
    """Ask about a drawn image, preferably for a caption; return the time of each stage."""
    tasks = []
    for task in client.tasks():
        if task.models and not task.parameters.get("required"):
            tasks.append(task.id)
    task_id = "captioning" if "captioning" in tasks else tasks[0]
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).ellipse((90, 50, 230, 190), fill="orange")
    file = io.BytesIO()
    image.save(file, "PNG")
    start_s = time.monotonic()
    answer = client.predict(file.getvalue(), task_id)
    total_ms = 1000 * (time.monotonic() - start_s)
    stages = asdict(answer.timings_ms)
    network_ms = max(0.0, total_ms - stages.pop("total"))
    times = ", ".join(f"{name} {value:.0f}" for name, value in stages.items())
    text = f"{task_id} by {answer.model} in {total_ms:.0f} ms"
    return f"{text}: network and client {network_ms:.0f}, {times}"
