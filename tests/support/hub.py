"""A local hub: the part of the hub's HTTP API for fetching one repository, and its failures.

huggingface_hub finds it by HF_ENDPOINT and raises its own exceptions for its answers. Source of
paths and headers: huggingface_hub 2.4, utils/_http.py (hf_raise_for_status) and utils/_xet.py.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.support.http_servers import Handler, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "tests/florence-2-mini"
BRANCHES = ("main", "bfloat16")
_MODEL = f"/api/models/{REPOSITORY}"

Failure = Literal["gated", "no revision", "broken xet"]
_REFUSALS: dict[str | None, tuple[int, dict[str, str]]] = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "no revision": (404, {"X-Error-Code": "RevisionNotFound"}),
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
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }


@contextmanager
def running_hub(folder: Path, failure: Failure | None = None) -> Iterator[LocalHub]:
    hub = LocalHub(folder, failure)
    with serving(type("HubHandler", (_HubHandler,), {"hub": hub})) as hub.address:
        yield hub


class _HubHandler(Handler):
    hub: LocalHub

    def do_GET(self) -> None:
        hub = self.hub
        hub.requested.append(self.path)
        path = self.path.partition("?")[0]
        folder, _, name = path.rpartition("/")
        if hub.failure in _REFUSALS:
            status, headers = _REFUSALS[hub.failure]
            self.send(status, b"{}", headers)
        elif path.startswith(f"{_MODEL}/xet-read-token"):
            self.send(200, b"{}", self._xet_connection())
        elif path.startswith(f"{_MODEL}/tree/{COMMIT}"):
            rows = [{"type": "file", "size": 1, "path": file, "oid": file} for file in hub.files]
            self.send(200, json.dumps(rows).encode())
        elif path == _MODEL or folder == f"{_MODEL}/revision":
            is_known = path == _MODEL or name in BRANCHES
            self.send(
                200 if is_known else 404, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode()
            )
        elif f"{REPOSITORY}/resolve/" in folder and name in hub.files:
            self._send_file(name, hub.files[name])
        else:
            self.send(404)

    do_HEAD = do_GET

    def _send_file(self, name: str, content: bytes) -> None:
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{name}"',
            "Content-Length": str(len(content)),
        }
        is_large = name.endswith(".safetensors")
        if is_large and self.hub.failure == "broken xet":
            route = f"{self.hub.address}{_MODEL}/xet-read-token/{COMMIT}"
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": route}
            headers["X-Linked-Size"] = str(len(content))
        self.send(200, content, headers)

    def _xet_connection(self) -> dict[str, str]:
        """Return the headers of a connection to this hub, whose storage is of another kind."""
        return {
            "X-Xet-Cas-Url": self.hub.address,
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": str(int(time.time()) + 3600),
        }
