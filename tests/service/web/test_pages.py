"""The files of the pages over HTTP, without a browser."""

import re
from pathlib import Path

import pytest

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http.middleware import CONTENT_SECURITY_POLICY
from service.settings import Settings
from tasks.table import TASKS
from tests.support.catalog import PALIGEMMA
from tests.support.export_cli import ROOT
from tests.support.fake_service import make_core
from tests.support.playground_questions import SAMPLES
from tests.support.rest_client import Client, client, error_of

PAGE = ROOT / "service/web/playground"
FILES = [str(path.relative_to(PAGE)) for path in sorted(PAGE.rglob("*")) if path.is_file()]
TYPES = {
    **{"html": "text/html", "js": "text/javascript", "css": "text/css", "png": "image/png"},
    **{"jpg": "image/jpeg", "svg": "image/svg+xml", "json": "application/json"},
}


@pytest.mark.parametrize(
    "path", ["/playground", "/playground/", "/docs", *(f"/playground/{file}" for file in FILES)]
)
def test_files_have_type_and_policy(path: str) -> None:
    response = client().get(path)
    assert response.status_code == 200
    expected = TYPES.get(path.rpartition(".")[2], "text/html")
    assert response.headers["content-type"].partition(";")[0] == expected
    assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-cache"


def test_policy_allows_no_inline_code() -> None:
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert not re.search(r"unsafe|https?:|\*", CONTENT_SECURITY_POLICY)


@pytest.mark.parametrize("page", [PAGE / "index.html", ROOT / "service/web/docs/index.html"])
def test_pages_have_no_inline_code(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", text)
    assert not re.search(r"(?:src|href)=\"(?!/|#)", text)


def test_cached_file_is_revalidated_with_304() -> None:
    first = client().get("/playground/js/app.js")
    again = client().get("/playground/js/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("file", ["none.js", "js", "%2e%2e/pages.py", "/etc/passwd"])
def test_path_outside_the_page_is_404(file: str) -> None:
    response = client().get(f"/playground/{file}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_page_needs_no_key_and_no_start() -> None:
    starting = Client(RestBoundary(Settings()))
    assert starting.get("/playground").status_code == 200
    locked = client(keys=ApiKeys([]))
    assert locked.get("/playground/js/app.js").status_code == 200
    assert error_of(locked.get("/v1/tasks"))["code"] == "unauthorized"


def test_samples_have_every_parameter() -> None:
    needed = set[str]()
    for task in TASKS.values():
        needed |= {parameter.name for parameter in task.parameters if parameter.default is None}
    for entry in SAMPLES.values():
        assert set(entry["examples"]) == needed


async def test_document_follows_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    core = make_core()
    async with client(core).http({}) as page:
        before = (await page.get("/openapi.json")).text
        with monkeypatch.context() as context:  # made once: callers need no key
            context.delattr("service.web.pages.openapi_document")
            assert (await page.get("/openapi.json")).text == before
        models = {model.id: model for model in core.models}
        core.models.set_models({PALIGEMMA.id: models[PALIGEMMA.id]})
        assert (await page.get("/openapi.json")).text != before
