"""The playground over a service with fake models, with texts, delays and keys set by the test."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from service.admission.api_keys import ApiKeys
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import Core
from service.settings import Settings
from tests.support.api_keys import api_keys
from tests.support.fake_runners import FakeDecoder
from tests.support.fake_service import FLORENCE_ANSWERS, FLORENCE_ID, make_core
from tests.support.served_app import ServedApp, serving_app


@contextmanager
def page_service(
    answers: Mapping[str, str] | None = None,
    decoder: FakeDecoder | None = None,
    key: str | None = None,
    core: Core | None = None,
) -> Iterator[ServedApp]:
    """Serve a core, or one with a decoder of Florence-2, or with texts of it by prompt."""
    decoder = decoder or FakeDecoder({**FLORENCE_ANSWERS, **(answers or {})})
    boundary = RestBoundary(Settings())
    keys = ApiKeys(None) if key is None else api_keys(key)
    boundary.start(core or make_core(decoders={FLORENCE_ID: decoder}), keys)
    with serving_app(rest_app(boundary)) as served:
        yield served
