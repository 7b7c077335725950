import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export.checkpoints.errors import SourceError
from export.checkpoints.precision_record import RECORD_FILE
from export.checkpoints.sources import Source, resolve_file, resolve_source
from tests.support.export_cli import MODELS, ROOT, ModelStore

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "tests/florence-2-mini"


class HubHandler(BaseHTTPRequestHandler):
    """The part of the hub's API for fetching a repository at a branch; the repository also has a pickle and code."""

    requested: list[str]

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def _answer(self, has_body: bool) -> None:
        self.requested.append(self.path)
        name = self.path.rpartition("/")[2].partition("?")[0]
        if self.path.startswith(f"/api/models/{REPOSITORY}/tree/{COMMIT}"):
            names = (*_file_names(), "pytorch_model.bin", "modeling.py")
            body = json.dumps([{"type": "file", "path": name, "size": 1, "oid": name} for name in names]).encode()
        elif self.path.startswith(f"/api/models/{REPOSITORY}"):
            body = json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode()
        elif self.path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/") and name in _file_names():
            body = (MODELS / "florence-2-mini" / name).read_bytes()
        else:
            self.send_error(404)
            return
        self.send_response(200)
        for key, value in {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _file_names() -> list[str]:
    return [path.name for path in (MODELS / "florence-2-mini").iterdir()]


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """A local hub: its address, and the paths requested from it."""
    requested: list[str] = []
    handler = type("Handler", (HubHandler,), {"requested": requested})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", requested
        server.shutdown()


def test_hub_checkpoint_is_pinned_to_its_commit_and_nothing_executable_is_fetched(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, requested = hub
    run = ModelStore(tmp_path / "bentoml").export(
        "florence-2-mini",
        *("--source", REPOSITORY, "--revision", "main", "--if-changed"),
        HF_ENDPOINT=address,
        HF_HOME=str(tmp_path / "cache"),
    )
    assert run.returncode == 0, run.stderr
    manifest = json.loads(next(tmp_path.glob("bentoml/models/*/*/manifest.json")).read_text(encoding="utf-8"))
    assert (manifest["source"], manifest["revision"]) == (REPOSITORY, COMMIT)
    assert any(path.startswith(f"/api/models/{REPOSITORY}/revision/main") for path in requested)
    assert not any(path.endswith((".bin", ".py")) for path in requested)


def test_folder_is_found_relative_to_the_root() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    assert source == Source("models/florence-2-mini", None, MODELS / "florence-2-mini")
    of_ours = (".md", ".png", RECORD_FILE)  # model card, its pictures, precision record
    read = [name for name in _file_names() if not name.endswith(of_ours)]
    assert [path.name for path in source.files()] == sorted(read)


def test_folder_with_a_revision_is_refused() -> None:
    with pytest.raises(SourceError, match="has no revisions"):
        resolve_source("models/florence-2-mini", "main", "florence2", ROOT)


def test_checkpoint_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text('{"model_type": "florence2"}', encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match=r"lacks model\.safetensors"):
        resolve_source(str(tmp_path), None, "florence2", ROOT)


@pytest.mark.parametrize("config", ["", "[]", "{}", '{"model_type": "bert"}'])
def test_config_without_a_known_family_is_refused(tmp_path: Path, config: str) -> None:
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "config.json").write_text(config, encoding="utf-8")
    with pytest.raises(SourceError, match=r"model_type|checkpoint of bert"):
        resolve_source(str(tmp_path), None, "florence2", ROOT)


def test_file_that_is_not_in_the_checkpoint_is_refused() -> None:
    source = resolve_source("models/florence-2-mini", None, "florence2", ROOT)
    with pytest.raises(SourceError, match=r"does not contain vae\.npz"):
        resolve_file("vae.npz", source)
