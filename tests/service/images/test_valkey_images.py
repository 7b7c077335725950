"""Images in a store that gateways of several hosts share: the folder's bounds, and its errors."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.errors import ImageExpired, NotFound, NotReady, PayloadTooLarge
from service.images.handle_store import StoreLimits, image_store
from service.images.inputs import ImageHandle
from service.images.valkey_images import ValkeyImages
from service.settings import Settings
from tests.service.images.test_handle_store import SIZE_WH, added, kept
from tests.support.valkey import Valkey, needs_valkey, running_valkey

pytestmark = needs_valkey
LIMITS = StoreLimits(10_000, 10_000, 100, 1_000)
PREFIX = "diptych:images:"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as running:
        yield running


@pytest.fixture
def valkey(server: Valkey) -> Valkey:
    server.client.flushall()
    return server


def test_an_image_is_read_by_its_key_from_any_gateway(valkey: Valkey) -> None:
    first = ValkeyImages(valkey.url, LIMITS)
    second = ValkeyImages(valkey.url, LIMITS)
    stored = first.add("one", b"\0image\xff", SIZE_WH)
    handle = ImageHandle(stored.id)
    assert second.read("one", handle) == b"\0image\xff"
    assert (second.describe("one", handle), stored.num_bytes) == (stored, 7)
    assert first.add("one", b"\0image\xff", SIZE_WH).id == stored.id
    assert valkey.client.hgetall(f"{PREFIX}bytes") == {b"one": b"15"}
    with pytest.raises(NotFound):
        second.read("two", handle)
    second.remove("one", handle)
    for call in (first.read, first.describe, first.remove):
        with pytest.raises(ImageExpired, match="send it again"):
            call("one", handle)
    assert valkey.client.keys() == [f"{PREFIX}secret".encode()]


def test_a_key_loses_the_image_that_it_used_longest_ago(valkey: Valkey) -> None:
    images = ValkeyImages(valkey.url, replace(LIMITS, max_bytes_of_key=300))
    handles = [added(images, "one", bytes([number]) * 92) for number in range(3)]
    other = added(images, "two", b"2" * 92)
    images.read("one", handles[0])
    handles.append(added(images, "one", b"3" * 92))
    assert kept(images, "one", *handles) == [True, False, True, True]
    assert kept(images, "two", other) == [True]
    with pytest.raises(PayloadTooLarge, match="at most 300"):
        images.add("one", bytes(301), SIZE_WH)


@pytest.mark.parametrize("limits", [replace(LIMITS, max_bytes=500), replace(LIMITS, max_images=5)])
def test_a_key_with_few_images_loses_none_to_one_with_many(
    valkey: Valkey, limits: StoreLimits
) -> None:
    images = ValkeyImages(valkey.url, limits)
    few = [added(images, "few", bytes([number]) * 92) for number in range(2)]
    many = [added(images, "many", bytes([number]) * 92) for number in range(10)]
    assert kept(images, "few", *few) == [True, True]
    assert kept(images, "many", *many) == [False] * 7 + [True] * 3


def test_an_expired_image_is_gone_and_no_longer_counted(valkey: Valkey) -> None:
    images = ValkeyImages(valkey.url, LIMITS)
    handle = added(images, "one", b"image")
    (image,) = valkey.client.keys(f"{PREFIX}image:*")
    assert 0 < valkey.client.ttl(image) <= LIMITS.kept_s
    valkey.client.delete(image)
    valkey.client.zadd(f"{PREFIX}expiry", {f"one/{handle.text[4:36]}": 1})
    assert kept(images, "one", handle) == [False]
    added(images, "two", b"image")
    assert valkey.client.hgetall(f"{PREFIX}bytes") == {b"two": b"13"}


def test_a_store_that_lost_its_data_is_used_again_and_one_that_ends_is_an_error_that_passes(
    tmp_path: Path,
) -> None:
    with running_valkey(tmp_path) as valkey:
        images = image_store(Settings(images_folder=valkey.url))
        assert isinstance(images, ValkeyImages)
        handle = added(images, "one", b"image")
        valkey.client.flushall()
        with pytest.raises(NotFound):
            images.read("one", handle)
        assert kept(images, "one", added(images, "one", b"image")) == [True]
        valkey.kill()
        with pytest.raises(NotReady, match="send the image itself"):
            images.read("one", handle)


def test_the_url_of_another_service_is_refused() -> None:
    with pytest.raises(ValueError, match="it must be redis"):
        Settings(images_folder="redis://host:no")
