"""Every route that answers HTML, in a real browser: none needs another host, and `/` is the page of
this project.
"""

from playwright.sync_api import BrowserContext

from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.settings import Settings
from tests.support.running_service import RunningService

# BentoML's routes beside ours: bentoml/_internal/server/base_app.py, _bentoml_impl/server/app.py.
BENTOML_PATHS = (
    "/livez",
    "/readyz",
    "/healthz",
    "/docs.json",
    "/static_content/index.css",
    "/static_content/",
)


def test_no_page_needs_another_host(context: BrowserContext, service: RunningService) -> None:
    page = context.new_page()
    pages = []
    templates: list[str] = [route.path for route in rest_app(RestBoundary(Settings())).routes]  # type: ignore[attr-defined]
    paths = [path.replace("{file:path}", "").replace("{path:path}", "none") for path in templates]
    for path in (*sorted(paths), *BENTOML_PATHS):
        response = page.request.get(service.url + path)
        if response.headers.get("content-type", "").startswith("text/html"):
            pages.append(path)
            # the context's witness fails on any other host
            page.goto(service.url + path, wait_until="networkidle")
    assert pages == ["/", "/docs", "/playground", "/playground/"]
    page.goto(service.url + "/")
    assert page.url == f"{service.url}/playground"
