"""The real Label Studio, started from PyPI's package with an SQLite database, and its HTTP API as a
person uses it.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.export_cli import ROOT
from tests.support.running_service import free_port
from tests.support.tool_environments import dependency_group
from tests.support.waiting import wait_until_ready

ENVIRONMENT = ROOT / "build/label-studio"
MISSING_LABEL_STUDIO = (
    "Label Studio cannot be installed by pip here: its integration is NOT tested with the real tool"
)
EMAIL = "admin@example.com"
PASSWORD = "password123"
_LEGACY_TOKEN = "0123456789abcdef0123456789abcdef01234567"
_DATABASE = ENVIRONMENT / "new.sqlite3"  # made by the first start in most of a minute
_START_TIMEOUT_S = 300
_SETTINGS = {
    "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
    "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
    "COLLECT_ANALYTICS": "false",
    "LATEST_VERSION_CHECK": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
}


def install() -> bool:
    """Install Label Studio into a separate environment, unless it is there.

    Return False if pip cannot.
    """
    stamp = ENVIRONMENT / "installed"
    requirements = dependency_group("label-studio")
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return True
    _DATABASE.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
    pip = subprocess.run([ENVIRONMENT / "bin/pip", "install", "--quiet", *requirements])
    if pip.returncode == 0:
        stamp.write_text(wanted, encoding="utf-8")
    return pip.returncode == 0


@dataclass(frozen=True, slots=True)
class Project:
    """A project of Label Studio."""

    http: httpx.Client
    id: int

    def upload(self, name: str, image: bytes) -> None:
        self._post("import", files={"file": (name, image, "image/png")})

    def add_tasks(self, *images: str) -> None:
        """Add a task for each URL."""
        self._post("import", json=[{"image": image} for image in images])

    def add_local_files(self, folder: Path) -> None:
        storage = {
            "project": self.id,
            "path": str(folder),
            "use_blob_urls": True,
            "regex_filter": ".*png",
        }
        storage_id = _checked(self.http.post("/api/storages/localfiles", json=storage)).json()["id"]
        _checked(self.http.post(f"/api/storages/localfiles/{storage_id}/sync"))

    def connect(self, url: str, password: str, is_interactive: bool = False) -> httpx.Response:
        """Connect a backend with basic authentication, as the dialog "Connect Model" does."""
        backend = {
            "project": self.id,
            "url": url,
            "title": "Diptych",
            "is_interactive": is_interactive,
        }
        credentials = {
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": "diptych",
            "basic_auth_pass": password,
        }
        return self.http.post("/api/ml", json=backend | credentials)

    def act(self, action: str, **options: object) -> None:
        """Run an action of the data manager on all tasks."""
        selected = {"selectedItems": {"all": True, "excluded": []}}
        parameters: dict[str, str | int] = {"id": action, "project": self.id}
        _checked(self.http.post("/api/dm/actions", params=parameters, json=selected | options))

    def tasks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = _checked(
            self.http.get(
                "/api/tasks", params={"project": self.id, "fields": "all", "page_size": 500}
            )
        ).json()["tasks"]
        return sorted(found, key=lambda task: task["id"])

    def predictions(self, task: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
        """Return the results of a task's predictions by version."""
        found = _checked(self.http.get("/api/predictions", params={"task": task["id"]})).json()
        assert len({each["model_version"] for each in found}) == len(found)
        return {each["model_version"]: each["result"] for each in found}

    def prompt(
        self, backend: int, task: Mapping[str, Any], *results: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the answer of an interactive backend to regions that a person drew or wrote."""
        asked = {"task": task["id"], "context": {"result": list(results)}}
        answer: dict[str, Any] = _checked(
            self.http.post(f"/api/ml/{backend}/interactive-annotating", json=asked)
        ).json()
        return answer

    def exported(self, export_type: str) -> bytes:
        return _checked(
            self.http.get(f"/api/projects/{self.id}/export", params={"exportType": export_type})
        ).content

    def _post(self, path: str, **body: Any) -> None:
        _checked(self.http.post(f"/api/projects/{self.id}/{path}", **body))


@dataclass(frozen=True, slots=True)
class LabelStudio:
    """A running Label Studio."""

    url: str
    http: httpx.Client  # logged in as its administrator
    personal_token: str

    def project(self, title: str, config: str) -> Project:
        created = _checked(
            self.http.post("/api/projects", json={"title": title, "label_config": config})
        )
        return Project(self.http, created.json()["id"])


def _checked(response: httpx.Response) -> httpx.Response:
    assert response.is_success, response.text
    return response


@contextmanager
def running_label_studio(folder: Path) -> Iterator[LabelStudio]:
    """Start Label Studio with its data and local files in `folder`, yield it, stop it."""
    port = free_port()
    (folder / "files").mkdir(parents=True)
    database = folder / "label_studio.sqlite3"
    if _DATABASE.exists():
        shutil.copy(_DATABASE, database)
    settings = {"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(folder / "files"), **_SETTINGS}
    settings |= dict(_documented_settings())
    user = ["--username", EMAIL, "--password", PASSWORD, "--user-token", _LEGACY_TOKEN]
    program = str(ENVIRONMENT / "bin/label-studio")
    command = [program, "start", "--no-browser", "--internal-host", "127.0.0.1"]
    with (folder / "label-studio.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--data-dir", str(folder), *user],
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(
            base_url=url, timeout=120, headers={"Authorization": f"Token {_LEGACY_TOKEN}"}
        ) as http:
            wait_until_ready(
                lambda: _is_up(http), process, folder / "label-studio.log", _START_TIMEOUT_S
            )
            if not _DATABASE.exists():
                _copy_database(database)
            token = _checked(http.post("/api/token/")).json()["token"]
            yield LabelStudio(url, http, token)
    finally:
        process.terminate()
        process.wait(60)


def _documented_settings() -> list[tuple[str, str]]:
    """Return the environment variables of the command in docs/label-studio.md."""
    page = (ROOT / "docs/label-studio.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^(.+) label-studio start ", page, re.MULTILINE)
    return re.findall(r"(\w+)=(\S+)", line)


def _copy_database(database: Path) -> None:
    """Keep a database that is in use."""
    with (
        closing(sqlite3.connect(database)) as source,
        closing(sqlite3.connect(_DATABASE)) as target,
    ):
        source.backup(target)


def _is_up(http: httpx.Client) -> bool:
    try:
        return http.get("/health").is_success
    except httpx.TransportError:
        return False


def in_label_studio(code: str, stdin: str) -> str:
    """Return what Python code prints in the environment of Label Studio, given its standard
    input.
    """
    command: Sequence[str | Path] = [ENVIRONMENT / "bin/python", "-c", code]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=True).stdout
