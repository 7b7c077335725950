"""The endpoints of files and batches: form of answers and errors, pages, and whose a file is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest

from service.admission.api_keys import ApiKeys, parse_keys
from service.batches import api, store
from service.batches.store import Store
from service.http.boundary import STATUSES
from service.settings import Settings
from tests.support.api_keys import hash_of
from tests.support.batch_runs import CHAT, PREDICT, jsonl, line
from tests.support.export_cli import full_disk
from tests.support.rest_client import Client, client, fits

CONTENT = jsonl(line("a"))


@pytest.fixture
def rest(tmp_path: Path) -> Client:
    return serving(tmp_path)


def serving(folder: Path, keys: ApiKeys | None = None) -> Client:
    Store(folder).prepare()
    return client(keys=keys, values=Settings(batches_folder=folder, request_timeout_s=5))


def contents(folder: Path) -> list[Path]:
    return list((folder / "files").iterdir())


def upload(
    rest: Client, content: bytes = CONTENT, data: Mapping[str, str] | None = None, **options: Any
) -> httpx.Response:
    fields = {"purpose": "batch"} if data is None else data
    files = {"file": ("in.jsonl", content)}
    return rest.send("POST", "/v1/files", files=files, data=fields, **options)


def expiry(seconds: str, anchor: str = "created_at") -> dict[str, str]:
    return {"purpose": "batch", "expires_after[anchor]": anchor, "expires_after[seconds]": seconds}


def file_id(rest: Client, **options: Any) -> str:
    return str(upload(rest, **options).raise_for_status().json()["id"])


def create(rest: Client, file: str, **fields: Any) -> httpx.Response:
    body = {"input_file_id": file, "endpoint": PREDICT, "completion_window": "24h", **fields}
    body = {name: value for name, value in body.items() if value is not None}
    return rest.send("POST", "/v1/batches", json=body)


def error(response: httpx.Response, code: str, param: str | None = None) -> str:
    """Return the message of an error, whose form is OpenAI's."""
    assert fits(response.json(), "ChatError")
    detail = response.json()["error"]
    assert (detail["code"], detail["param"]) == (code, param), detail
    assert response.status_code == {str(name): status for name, status in STATUSES.items()}[code]
    return str(detail["message"])


@pytest.mark.parametrize(
    ("size", "fields", "kept_s"), [(10, None, 30 * 24 * 3600), (3_000_000, expiry("3600"), 3600)]
)
def test_file_comes_back_until_deleted(
    rest: Client, tmp_path: Path, size: int, fields: dict[str, str] | None, kept_s: int
) -> None:
    content = b"\r\n--boundary\n" + b"x" * size
    file = upload(rest, content, fields).json()
    assert fits(file, "FileObject")
    assert (file["bytes"], file["filename"]) == (len(content), "in.jsonl")
    assert file["expires_at"] - file["created_at"] == kept_s
    path = f"/v1/files/{file['id']}"
    assert rest.get(path).json() == file
    assert rest.get(f"{path}/content").content == content
    assert [path.read_bytes() for path in contents(tmp_path)] == [content]
    assert fits(rest.send("DELETE", path).json(), "FileDeleted")
    for method, gone in [("GET", path), ("GET", f"{path}/content"), ("DELETE", path)]:
        error(rest.send(method, gone), "not_found", "file_id")
    assert contents(tmp_path) == []


def test_input_in_use_is_not_deleted(rest: Client) -> None:
    file = file_id(rest)
    batch_id = create(rest, file).json()["id"]
    refused = rest.send("DELETE", f"/v1/files/{file}")
    assert batch_id in error(refused, "invalid_request", "file_id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "purpose"),
        ({"purpose": "batch", "priority": "1"}, "priority"),
        ({"purpose": "batch", "expires_after": "1"}, "expires_after"),
        (expiry("1"), "expires_after.seconds"),
        (expiry("9" * 30), "expires_after.seconds"),
    ],
)
def test_invalid_upload_stores_nothing(
    rest: Client, tmp_path: Path, fields: dict[str, str], param: str
) -> None:
    error(upload(rest, data=fields), "invalid_request", param)
    assert contents(tmp_path) == []
    assert rest.get("/v1/files").json()["data"] == []


TYPE = {"Content-Type": "multipart/form-data; boundary=x"}


def form(*parts: bytes, end: bytes = b"--x--\r\n") -> dict[str, Any]:
    start = b"--x\r\nContent-Disposition: form-data; "
    body = b"".join(start + part + b"\r\n" for part in parts) + end
    return {"content": body, "headers": TYPE}


FILE_PART = b'name="file"; filename="a"\r\n\r\n{}'
PURPOSE_PART = b'name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    ("options", "param"),
    [
        (form(PURPOSE_PART), "file"),
        (form(FILE_PART, FILE_PART, PURPOSE_PART), "file"),
        (form(FILE_PART, PURPOSE_PART, PURPOSE_PART), "purpose"),
        (form(FILE_PART, PURPOSE_PART, end=b"--x"), None),
        ({"content": b"no form", "headers": TYPE}, None),
        ({"content": b"{}", "headers": {"Content-Type": "multipart/form-data"}}, None),
        ({"json": {}}, None),
    ],
)
def test_malformed_form_is_refused(
    rest: Client, tmp_path: Path, options: dict[str, Any], param: str | None
) -> None:
    error(rest.send("POST", "/v1/files", **options), "invalid_request", param)
    assert contents(tmp_path) == []
    assert rest.send("POST", "/v1/files", **form(FILE_PART, PURPOSE_PART)).json()["bytes"] == 2


def test_size_of_an_upload_is_limited(
    rest: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [b'name="%0100d"\r\n\r\n' % number for number in range(101)]
    error(rest.send("POST", "/v1/files", **form(FILE_PART, *names)), "payload_too_large")
    monkeypatch.setattr(api, "MAX_FILE_BYTES", 1000)
    assert upload(rest, b"x" * 1000).is_success
    rest.send("DELETE", f"/v1/files/{rest.get('/v1/files').json()['first_id']}")
    assert "1000 bytes" in error(upload(rest, b"x" * 20_000), "payload_too_large")
    error(upload(rest, data={"purpose": "x" * 10_500}), "payload_too_large")
    assert contents(tmp_path) == []


def test_limits_of_a_key(rest: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_id(rest)
    for name, most in [("MAX_BYTES_PER_KEY", len(CONTENT)), ("MAX_FILES_PER_KEY", 1)]:
        monkeypatch.setattr(store, name, most)
        unread = rest.send("POST", "/v1/files", json={})  # no form: refused before it is read
        for refused in (upload(rest), create(rest, file), unread):  # outputs are files, too
            assert "delete some" in error(refused, "overloaded")
        monkeypatch.undo()
    monkeypatch.setattr(store, "MAX_BATCHES_PER_KEY", 1)
    assert create(rest, file).is_success
    error(create(rest, file), "overloaded")


def test_file_deleted_while_sent_is_sent_whole(
    rest: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = file_id(rest)
    opened = Store.open

    def open_and_delete(store: Store, owner: str, file_id: str) -> BinaryIO:
        content = opened(store, owner, file_id)
        store.delete_file(owner, file_id)
        return content

    monkeypatch.setattr(Store, "open", open_and_delete)
    assert rest.get(f"/v1/files/{file}/content").content == CONTENT
    monkeypatch.undo()
    error(rest.get(f"/v1/files/{file}/content"), "not_found", "file_id")


@pytest.mark.parametrize(
    ("content", "max_bytes"), [(CONTENT * 1000, 0), (CONTENT * 1000, 1000), (b"{}", 2)]
)
def test_full_disk_refuses_an_upload(
    rest: Client, tmp_path: Path, content: bytes, max_bytes: int
) -> None:
    with full_disk(max_bytes):
        assert "try again later" in error(upload(rest, content), "not_ready")
    assert contents(tmp_path) == []
    assert upload(rest, content).is_success


def test_new_batch_is_validating_or_cancelled(rest: Client) -> None:
    batch = create(rest, file_id(rest), endpoint=CHAT, metadata={"job": "7"}).json()
    assert fits(batch, "Batch")
    assert (batch["status"], batch["metadata"]) == ("validating", {"job": "7"})
    assert batch["expires_at"] - batch["created_at"] == 24 * 3600
    assert rest.get(f"/v1/batches/{batch['id']}").json() == batch
    for _ in range(2):
        cancelled = rest.send("POST", f"/v1/batches/{batch['id']}/cancel").json()
        assert (cancelled["status"], bool(cancelled["cancelling_at"])) == ("cancelling", True)
    assert rest.get(f"/v1/batches/{batch['id']}").json() == cancelled


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"endpoint": "/v1/embeddings"}, "endpoint"), ({"metadata": {"job": 7}}, "metadata.job")],
)
def test_invalid_batch_field_is_named(rest: Client, fields: dict[str, Any], param: str) -> None:
    error(create(rest, file_id(rest), **fields), "invalid_request", param)


@pytest.mark.parametrize(
    "unknown", ["file-x", "file-" + "0" * 32, "../../batches", "batch_" + "0" * 32]
)
def test_unknown_ids_are_not_found(rest: Client, unknown: str) -> None:
    error(create(rest, unknown), "not_found", "file_id")
    # %2F is a slash again before it is routed: no route has some of these
    quoted = unknown.replace("/", "%2F")
    for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/content")]:
        assert rest.send(method, f"/v1/files/{quoted}{path}").status_code in (404, 405)
    for method, path in [("GET", ""), ("POST", "/cancel")]:
        assert rest.send(method, f"/v1/batches/{quoted}{path}").status_code in (404, 405)


def ids(page: Mapping[str, Any]) -> list[str]:
    return [item["id"] for item in page["data"]]


def test_lists_have_pages(rest: Client) -> None:
    files = [file_id(rest) for _ in range(3)]
    batches = [create(rest, files[0]).json()["id"] for _ in range(3)]
    listings = (("/v1/files", files, "FileList"), ("/v1/batches", batches, "BatchList"))
    for path, (oldest, middle, newest), schema in listings:
        whole = rest.get(f"{path}?limit=3").json()
        assert fits(whole, schema)
        assert (ids(whole), whole["has_more"]) == ([newest, middle, oldest], False)
        first = rest.get(f"{path}?limit=2").json()
        assert (ids(first), first["has_more"]) == ([newest, middle], True)
        assert (first["first_id"], first["last_id"]) == (newest, middle)
        second = rest.get(f"{path}?limit=2&after={middle}").json()
        assert (ids(second), second["has_more"]) == ([oldest], False)
    assert ids(rest.get("/v1/files?order=asc").json()) == files
    assert rest.get("/v1/files?purpose=batch_output").json()["data"] == []


@pytest.mark.parametrize(
    "query",
    [
        *("files?limit=0", "files?limit=x", "files?order=up", "files?purpose=x"),
        *("files?after=x", "batches?limit=101"),
    ],
)
def test_invalid_query_is_named(rest: Client, query: str) -> None:
    error(rest.get(f"/v1/{query}"), "invalid_request", query.partition("?")[2].partition("=")[0])


def test_key_sees_its_own_only(tmp_path: Path) -> None:
    keys = ApiKeys(parse_keys(f"{hash_of('one')} name=shared\n{hash_of('two')} name=shared"))
    rest = serving(tmp_path, keys)
    one, two = ({"headers": {"Authorization": f"Bearer {key}"}} for key in ("one", "two"))
    file = file_id(rest, **one)
    body = {"input_file_id": file, "endpoint": PREDICT, "completion_window": "24h"}
    error(rest.send("POST", "/v1/batches", json=body, **two), "not_found", "file_id")
    batch = rest.send("POST", "/v1/batches", json=body, **one).json()["id"]
    for method, path in [
        ("GET", f"files/{file}"),
        ("GET", f"files/{file}/content"),
        ("DELETE", f"files/{file}"),
        ("GET", f"batches/{batch}"),
        ("POST", f"batches/{batch}/cancel"),
    ]:
        assert rest.send(method, f"/v1/{path}", **two).status_code == 404
        assert rest.send(method, f"/v1/{path}").status_code == 401
    for path in ("files", "batches"):
        assert rest.get(f"/v1/{path}", **two).json()["data"] == []
    assert rest.get(f"/v1/batches/{batch}", **one).json()["status"] == "validating"


@pytest.mark.parametrize("path", ["files", "batches", "files/file-x", "batches/batch_x"])
def test_disabled_without_a_folder(path: str) -> None:
    assert "DIPTYCH_BATCHES_FOLDER" in error(client().get(f"/v1/{path}"), "not_found")
