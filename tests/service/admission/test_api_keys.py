"""Limits of a key over REST and gRPC: 429 with the seconds until a retry."""

import asyncio
import logging
import os
from asyncio import run
from pathlib import Path

import httpx
import pytest

from service.admission.api_keys import ApiKeys, KeyEntry, QuotaLimits, parse_keys
from service.errors import Overloaded, Unauthorized
from service.http.boundary import RestBoundary
from service.http_app import rest_app
from service.inference.core import Core
from service.settings import SettingsError
from tests.support.api_keys import FakeClock, api_keys, hash_of
from tests.support.fake_runners import FakeEncoder
from tests.support.fake_service import FLORENCE_ID, encoded, make_core
from tests.support.rest_client import OCR, SETTINGS, Client, client, error_of
from tests.support.scene_images import scene_image

ADDRESS = "192.0.2.1"


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n\n  {hash_of('second').upper()}  \n")
    return file


@pytest.mark.parametrize("authorization", [None, "", "Bearer anything", "nonsense"])
def test_no_file_needs_no_key(authorization: str | None) -> None:
    ApiKeys.load(None).check(authorization, ADDRESS)


@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second", "BEARER   first  "])
def test_key_of_the_file_is_accepted(keys_file: Path, authorization: str) -> None:
    ApiKeys.load(keys_file).check(authorization, ADDRESS)


@pytest.mark.parametrize(
    "authorization",
    [
        "Bearer third",
        "Bearer FIRST",
        "Basic first",
        "first",
        "Bearer first second",
        f"Bearer {hash_of('first')}",
        "Bearer f\xe4rst",
    ],
)
def test_other_keys_are_refused(keys_file: Path, authorization: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer KEY"):
        ApiKeys.load(keys_file).check(authorization, ADDRESS)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer "])
def test_missing_key_is_reported(keys_file: Path, authorization: str | None) -> None:
    with pytest.raises(Unauthorized, match=r"^no API key was sent"):
        ApiKeys.load(keys_file).check(authorization, ADDRESS)


def test_error_does_not_quote_the_key(keys_file: Path) -> None:
    with pytest.raises(Unauthorized) as caught:
        ApiKeys.load(keys_file).check("Bearer my-secret", ADDRESS)
    assert "my-secret" not in caught.value.message


def test_empty_file_accepts_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    with pytest.raises(Unauthorized):
        ApiKeys.load(file).check("Bearer ", ADDRESS)


@pytest.mark.parametrize(
    "line", ["secret", hash_of("a")[:-1], hash_of("a") + "0", "g" * 64, f"# {hash_of('a')}"]
)
def test_malformed_line_is_not_quoted(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n{line}\n")
    with pytest.raises(
        SettingsError, match="DIPTYCH_API_KEYS_FILE: entry 2: it must start with a SHA-256"
    ) as caught:
        ApiKeys.load(file)
    assert line not in str(caught.value)


def test_unreadable_key_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    for file in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE='{file}' cannot be read"):
            ApiKeys.load(file)


def guess(keys: ApiKeys, address: str, num_guesses: int) -> list[type[Exception]]:
    """Return the error of each wrong key."""
    errors: list[type[Exception]] = []
    for number in range(num_guesses):
        with pytest.raises((Unauthorized, Overloaded)) as caught:
            keys.check(f"Bearer guess-{number}", address)
        errors.append(caught.type)
    return errors


def test_rate_of_wrong_keys(keys_file: Path) -> None:
    now_s = 100.0
    keys = ApiKeys.load(keys_file, lambda: now_s)
    assert guess(keys, ADDRESS, 12) == [Unauthorized] * 10 + [Overloaded] * 2
    with pytest.raises(Overloaded, match="10 wrong API keys per minute") as refused:
        keys.check("Bearer guess", ADDRESS)
    assert refused.value.retry_after_s == 6
    assert keys.check("Bearer first", ADDRESS).name == "key-1"
    with pytest.raises(Unauthorized, match="no API key was sent"):
        keys.check(None, ADDRESS)
    now_s += 6
    assert guess(keys, ADDRESS, 2) == [Unauthorized, Overloaded]


@pytest.mark.parametrize(
    ("other", "is_same"),
    [("192.0.2.2", False), ("::ffff:192.0.2.1", True), ("2001:db8::1", False), ("", False)],
)
def test_each_address_has_its_own_rate(keys_file: Path, other: str, is_same: bool) -> None:
    keys = ApiKeys.load(keys_file)
    guess(keys, ADDRESS, 10)
    assert guess(keys, other, 1) == [Overloaded if is_same else Unauthorized]


def test_a_network_of_ipv6_is_one_address(keys_file: Path) -> None:
    keys = ApiKeys.load(keys_file)
    guess(keys, "2001:db8::1", 10)
    assert guess(keys, "2001:db8::ffff:2", 1) == [Overloaded]
    assert guess(keys, "2001:db8:0:1::1", 1) == [Unauthorized]


def test_counted_addresses_are_bounded(keys_file: Path) -> None:
    keys = ApiKeys.load(keys_file)
    guess(keys, ADDRESS, 10)
    for number in range(10_000):
        guess(keys, f"address-{number}", 1)
    assert guess(keys, ADDRESS, 1) == [Unauthorized]


HASH = hash_of("first")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (HASH, KeyEntry(HASH, "key-1", QuotaLimits())),
        (f"  {HASH.upper()}\t", KeyEntry(HASH, "key-1", QuotaLimits())),
        (f"{HASH} name=batch", KeyEntry(HASH, "batch", QuotaLimits())),
        (f"{HASH}  max_concurrent=4", KeyEntry(HASH, "key-1", QuotaLimits(max_concurrent=4))),
        (
            (
                f"{HASH} name=a.B-1_c requests_per_minute=60 megapixels_per_minute=100"
                " max_concurrent=4"
            ),
            KeyEntry(HASH, "a.B-1_c", QuotaLimits(60, 100, 4)),
        ),
    ],
)
def test_line_has_a_hash_and_options(line: str, expected: KeyEntry) -> None:
    assert parse_keys(f"\n{line}\n\n") == (expected,)


def test_keys_without_a_name_are_numbered() -> None:
    entries = parse_keys(f"{HASH}\n\n{hash_of('second')} name=b\n{hash_of('third')}")
    assert [entry.name for entry in entries] == ["key-1", "b", "key-3"]


def test_empty_file_has_no_keys() -> None:
    assert parse_keys(" \n\n") == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("a-secret", "unknown or repeated option; the options are name, requests_per_minute"),
        ("a-secret=1", "unknown or repeated option"),
        ("max_concurrent=1 max_concurrent=2", "unknown or repeated option"),
        ("max_concurrent", "invalid max_concurrent"),
        ("max_concurrent=", "invalid max_concurrent"),
        ("max_concurrent=0", "invalid max_concurrent: Input should be greater than or equal to 1"),
        (
            "requests_per_minute=a-secret",
            "invalid requests_per_minute: Input should be a valid integer",
        ),
        ("requests_per_minute=1.5", "invalid requests_per_minute"),
        ("megapixels_per_minute=-1", "invalid megapixels_per_minute"),
        ("name=", "invalid name"),
        ("name=a,secret", "invalid name"),
        (f"name={'a' * 65}", "invalid name"),
    ],
)
def test_invalid_option_is_not_quoted(options: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE: entry 2: {message}") as caught:
        parse_keys(f"{hash_of('second')}\n{HASH} {options}")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_repeated_key_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="entry 2: its SHA-256 repeats that of an earlier entry"
    ):
        parse_keys(f"{HASH} max_concurrent=1\n{HASH.upper()}")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('old')} name=old requests_per_minute=1\n")
    return file


def accepted(keys: ApiKeys) -> list[str]:
    return [key for key in ("old", "new") if is_accepted(keys, key)]


def is_accepted(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check(f"Bearer {key}", "192.0.2.1")
    except Unauthorized:
        return False
    return True


def test_changed_file_is_reloaded(
    file: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.admission.api_keys")
    keys = ApiKeys.load(file, clock)
    file.write_text(f"{hash_of('new')}\n{hash_of('another')}")
    clock.now_s += 0.9
    assert accepted(keys) == ["old"]
    clock.now_s += 0.1
    assert accepted(keys) == ["new"]
    assert caplog.messages == ["reloaded 2 API keys"]


def test_replaced_file_is_reloaded(file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(file, clock)
    other = file.with_name("other")
    other.write_text(file.read_text().replace(hash_of("old"), hash_of("new")))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.rename(file)
    clock.now_s += 1
    assert accepted(keys) == ["new"]


@pytest.mark.parametrize("text", ["no hash", None])
def test_malformed_file_keeps_the_keys(
    file: Path, clock: FakeClock, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys.load(file, clock)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    for _ in range(3):
        clock.now_s += 1
        assert accepted(keys) == ["old"]
    (record,) = caplog.records
    assert (record.levelno, "the API keys are unchanged" in record.getMessage()) == (
        logging.ERROR,
        True,
    )
    file.write_text(hash_of("new"))
    clock.now_s += 1
    assert accepted(keys) == ["new"]


def test_changed_key_has_a_new_quota(file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(file, clock)
    run(keys.check("Bearer old", "192.0.2.1").take_request())
    file.write_text(f"{file.read_text()}{hash_of('new')}")
    clock.now_s += 1
    assert accepted(keys) == ["old", "new"]
    with pytest.raises(Overloaded):
        run(keys.check("Bearer old", "192.0.2.1").take_request())
    file.write_text(f"{hash_of('old')} name=old requests_per_minute=2\n")
    clock.now_s += 1
    run(keys.check("Bearer old", "192.0.2.1").take_request())


def test_unchanged_file_keeps_the_quotas(file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(file, clock)
    quota = keys.check("Bearer old", "192.0.2.1")
    clock.now_s += 5
    assert keys.check("Bearer old", "192.0.2.1") is quota
    assert accepted(keys) == ["old"]


KEY = {"Authorization": "Bearer mine"}
FORM = {"task": "ocr"}
IMAGE = encoded(scene_image(size_wh=(1000, 500)), "JPEG", quality=10)  # half a megapixel


def limited(options: str, core: Core | None = None, clock: FakeClock | None = None) -> Client:
    return client(core, api_keys("mine", options, clock or FakeClock()))


def predict(api: Client, image: bytes = IMAGE, path: str = "/v1/predict") -> httpx.Response:
    return api.send("POST", path, data=FORM, files={"image": image}, headers=KEY)


def test_every_route_counts_requests() -> None:
    clock = FakeClock()
    api = limited("requests_per_minute=3", clock=clock)
    assert [
        api.get("/v1/models", headers=KEY).status_code,
        predict(api).status_code,
        predict(api, b"").status_code,
    ] == [*(200, 200, 415)]
    for response in (api.get("/v1/tasks", headers=KEY), predict(api)):
        assert error_of(response)["code"] == "overloaded"
        assert response.headers["retry-after"] == "20"
    clock.now_s += 20
    assert predict(api).status_code == 200


def test_wrong_key_uses_no_quota() -> None:
    api = limited("requests_per_minute=1")
    for _ in range(3):
        assert api.get("/v1/models").status_code == 401
    assert predict(api).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_pixels_count_once_per_request(path: str) -> None:
    api = limited("megapixels_per_minute=1")
    assert [predict(api, path=path).status_code for _ in range(2)] == [200, 200]
    truncated = IMAGE[: len(IMAGE) // 2]  # decoding it would fail
    response = predict(api, truncated, path)
    assert error_of(response)["code"] == "overloaded"
    assert response.headers["retry-after"] == "30"


def test_concurrent_requests_are_limited() -> None:
    released = asyncio.Event()
    core = make_core(encoders={FLORENCE_ID: FakeEncoder(released=released)})
    boundary = RestBoundary(SETTINGS)
    boundary.start(core, api_keys("mine", "max_concurrent=1"))

    async def predict_twice() -> list[httpx.Response]:
        transport = httpx.ASGITransport(rest_app(boundary))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://diptych", headers=KEY
        ) as api:
            first = asyncio.create_task(api.post("/v1/predict", json=OCR))
            while not core.places._pending.total:
                await asyncio.sleep(0.001)
            second = await api.post("/v1/predict", json=OCR)
            released.set()
            return [await first, second]

    first, second = asyncio.run(predict_twice())
    assert first.status_code == 200
    assert error_of(second)["code"] == "overloaded"
    assert "1 concurrent requests" in second.json()["error"]["message"]
    assert second.headers["retry-after"] == "1"
