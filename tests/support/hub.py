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
_MODEL = f"/api/models/{REPOSITORY}"
_REVISIONS = (f"{_MODEL}/revision/main", f"{_MODEL}/revision/bfloat16")

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
        files = {"pytorch_model.bin": b"pickle", "modeling.py": b"code"}
        for path in filter(Path.is_file, self.folder.iterdir()):
            files[path.name] = path.read_bytes()
        return files

    def environment(self, cache: Path) -> dict[str, str]:
        settings = {"HF_HOME": str(cache), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return {"HF_ENDPOINT": self.address, **settings}


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
            # a storage of another kind
            expiration = str(int(time.time()) + 3600)
            headers = {"X-Xet-Access-Token": "token", "X-Xet-Token-Expiration": expiration}
            self.send(200, b"{}", {"X-Xet-Cas-Url": hub.address, **headers})
        elif path.startswith(f"{_MODEL}/tree/{COMMIT}"):
            rows = [{"type": "file", "size": 1, "path": file, "oid": file} for file in hub.files]
            self.send(200, json.dumps(rows).encode())
        elif path == _MODEL or path in _REVISIONS:
            self.send(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode())
        elif f"{REPOSITORY}/resolve/" in folder and name in hub.files:
            self._send_file(name, hub.files[name])
        else:
            self.send(404)

    do_HEAD = do_GET

    def _send_file(self, name: str, content: bytes) -> None:
        size = str(len(content))
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Content-Length": size}
        if name.endswith(".safetensors") and self.hub.failure == "broken xet":
            route = f"{self.hub.address}{_MODEL}/xet-read-token/{COMMIT}"
            headers |= {"X-Xet-Hash": "ab" * 32, "X-Xet-Refresh-Route": route}
            headers["X-Linked-Size"] = size
        self.send(200, content, headers)
