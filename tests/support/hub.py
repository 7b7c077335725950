"""A local hub: the part of the hub's HTTP API for fetching one repository, and its failures.

huggingface_hub finds it by HF_ENDPOINT and raises its own exceptions for its answers. Source of
paths and headers: huggingface_hub 2.4, utils/_http.py (hf_raise_for_status) and utils/_xet.py.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Literal

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "tests/florence-2-mini"
BRANCHES = ("main", "bfloat16")
# The repository as a model, and as a data set of images.
_RESOLVED = tuple(
    f"/{kind}{REPOSITORY}/resolve/{revision}/"
    for kind, revision in product(("", "datasets/"), (COMMIT, *BRANCHES))
)

Failure = Literal["gated", "no repository", "no revision", "cut off", "broken xet", "server error"]
_REFUSALS: dict[str, tuple[int, dict[str, str]]] = {
    "gated": (
        403,
        {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."},
    ),
    "no repository": (
        401,
        {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"},
    ),
    "no revision": (404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}),
    "server error": (503, {}),
}


@dataclass
class LocalHub:
    """A hub of one repository, with the files of a folder beside a pickle and code."""

    folder: Path
    failure: Failure | None = None
    requested: list[str] = field(default_factory=list)
    address: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        checkpoint = {
            path.name: path.read_bytes() for path in self.folder.iterdir() if path.is_file()
        }
        return {"pytorch_model.bin": b"pickle", "modeling.py": b"code"} | checkpoint

    def environment(self, cache: Path) -> dict[str, str]:
        """Return the variables by which an export uses this hub, with its own cache."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def running_hub(folder: Path, failure: Failure | None = None) -> Iterator[LocalHub]:
    """Yield a hub on a port of 127.0.0.1 that the system chooses."""
    hub = LocalHub(folder, failure)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever).start()
        try:
            yield hub
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requested.append(self.path)
        path = self.path.partition("?")[0]
        name = self.path.partition("?")[0].rpartition("/")[2]
        if self.hub.failure in _REFUSALS:
            status, headers = _REFUSALS[self.hub.failure]
            self._send(status, b"{}", headers)
        elif path.startswith(f"/api/models/{REPOSITORY}/xet-read-token"):
            self._send(200, b"{}", self._xet_connection())
        elif path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            row = {"type": "file", "size": 1}
            rows = [row | {"path": name, "oid": name} for name in self.hub.files]
            self._send(200, json.dumps(rows).encode())
        elif path in (
            f"/api/models/{REPOSITORY}",
            *(f"/api/models/{REPOSITORY}/revision/{branch}" for branch in BRANCHES),
        ):
            self._send(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        elif path.startswith(_RESOLVED) and name in self.hub.files:
            self._send_file(name, self.hub.files[name])
        else:
            self._send(404, b"")

    def _send_file(self, name: str, content: bytes) -> None:
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
        is_large = name.endswith(".safetensors")
        if is_large and self.hub.failure == "broken xet":
            route = f"{self.hub.address}/api/models/{REPOSITORY}/xet-read-token/{COMMIT}"
            headers |= {
                "X-Xet-Hash": "ab" * 32,
                "X-Xet-Refresh-Route": route,
                "X-Linked-Size": str(len(content)),
            }
        if is_large and self.hub.failure == "cut off" and self.command == "GET":
            self._send(
                200, content[: len(content) // 2], headers | {"Content-Length": str(len(content))}
            )
            self.close_connection = True
            return
        self._send(200, content, headers)

    def _xet_connection(self) -> dict[str, str]:
        """Return the headers of a connection to this hub, which has no content-addressed
        storage.
        """
        return {
            "X-Xet-Cas-Url": self.hub.address,
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass
