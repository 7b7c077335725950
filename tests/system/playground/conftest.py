from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import Browser, BrowserContext

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import Core
from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.browser import CHROMIUM, MISSING, TIMEOUT_MS, Playground, Witness, chromium
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, make_core
from tests.support.http_servers import serving_app
from tests.support.running_service import RunningService


# Not for the whole session: while Playwright runs, no other test can start an event loop.
@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(MISSING)
    with chromium() as started:
        yield started


@contextmanager
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """Make a fresh profile, 1440 px wide, which must not need another host or break its policy."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    context.grant_permissions(["clipboard-read", "clipboard-write", "camera"])
    witness = Witness()
    context.on("page", witness.watch)
    yield context
    context.close()
    assert not witness.complaints


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    with profile(browser) as context:
        yield context


@pytest.fixture
def playground(context: BrowserContext, service: RunningService) -> Playground:
    return Playground(context.new_page(), service.url)


@pytest.fixture(scope="module")
def opened(browser: Browser, service: RunningService) -> Iterator[Playground]:
    """The page, opened once for the tests of a file that choose a task and run it."""
    with profile(browser) as context:
        playground = Playground(context.new_page(), service.url)
        playground.open()
        yield playground


@pytest.fixture
def serve_fakes(context: BrowserContext) -> Iterator[Callable[..., Playground]]:
    """A function that serves a core, or one with a decoder of Florence-2, and returns its page."""
    with ExitStack() as stack:

        def serve(
            decoder: FakeDecoder | None = None, key: str | None = None, core: Core | None = None
        ) -> Playground:
            boundary = RestBoundary(Settings())
            decoders = {FLORENCE_ID: decoder or FakeDecoder(FLORENCE_ANSWERS)}
            keys = ApiKeys(None) if key is None else api_keys(key)
            boundary.start(core or make_core(decoders=decoders), keys)
            served = stack.enter_context(serving_app(rest_app(boundary)))
            return Playground(context.new_page(), served.url)

        yield serve
