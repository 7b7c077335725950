"""Keys of a file, their quotas, and limits of a key over REST."""

import logging
import os
from pathlib import Path

import httpx
import pytest

from service.admission.api_keys import (
    UNLIMITED,
    ApiKeys,
    KeyEntry,
    Quota,
    QuotaLimits,
    TokenBucket,
    parse_keys,
)
from service.errors import InvalidRequest, Overloaded, ServiceError
from service.settings import SettingsError
from tests.support.api_keys import FakeClock, api_keys, hash_of
from tests.support.fake_service import encoded
from tests.support.rest_client import Client, client, error_of
from tests.support.scene_images import scene_image

ADDRESS = "192.0.2.1"
HASH = hash_of("first")
MEGAPIXEL = 1_000_000


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{HASH} requests_per_minute=1\n\n  {hash_of('second').upper()}  \n")
    return file


def is_accepted(keys: ApiKeys, key: str) -> bool:
    try:
        keys.check(f"Bearer {key}", ADDRESS)
    except ServiceError as error:
        return error.code != "unauthorized"
    return True


@pytest.mark.parametrize("authorization", [None, "", "Bearer anything", "nonsense"])
def test_no_file_needs_no_key(authorization: str | None) -> None:
    quota = ApiKeys.load(None).check(authorization, ADDRESS)
    assert (quota.name, quota.owner) == (ADDRESS, UNLIMITED.owner)
    assert ApiKeys.load(None).check(authorization, "").name == UNLIMITED.name


@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second", "BEARER   first  "])
def test_key_of_the_file_is_accepted(keys_file: Path, authorization: str) -> None:
    ApiKeys.load(keys_file).check(authorization, ADDRESS)


@pytest.mark.parametrize(
    ("authorization", "problem"),
    [
        ("Bearer my-secret", "the API key is not accepted"),
        ("Bearer FIRST", "the API key is not accepted"),
        ("Basic first", "the API key is not accepted"),
        ("Bearer first second", "the API key is not accepted"),
        (f"Bearer {HASH}", "the API key is not accepted"),
        ("Bearer f\xe4rst", "the API key is not accepted"),
        ("first", "no API key was sent"),
        (None, "no API key was sent"),
        ("Bearer ", "no API key was sent"),
    ],
)
def test_other_keys_are_refused(keys_file: Path, authorization: str | None, problem: str) -> None:
    with pytest.raises(ServiceError) as caught:
        ApiKeys.load(keys_file).check(authorization, ADDRESS)
    assert caught.value.code == "unauthorized"
    hint = "send a valid key in the header Authorization: Bearer KEY"
    assert caught.value.message == f"{problem}; {hint}"  # and quotes no key


def test_unreadable_key_file(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    for file in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE='{file}' cannot be read"):
            ApiKeys.load(file)


def wrong_keys(keys: ApiKeys, address: str, number: int) -> list[str]:
    """Return the code of each wrong key's error."""
    codes: list[str] = []
    for _ in range(number):
        with pytest.raises(ServiceError) as caught:
            keys.check("Bearer guess", address)
        codes.append(caught.value.code)
    return codes


def test_rate_of_wrong_keys(keys_file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(keys_file, clock)
    assert wrong_keys(keys, ADDRESS, 12) == ["unauthorized"] * 10 + ["overloaded"] * 2
    with pytest.raises(Overloaded, match=r"10 wrong API keys per minute.* retry after 6 s"):
        keys.check("Bearer guess", ADDRESS)
    assert keys.check("Bearer first", ADDRESS).name == "key-1"
    with pytest.raises(ServiceError, match="no API key was sent"):
        keys.check(None, ADDRESS)
    clock.now_s += 6
    assert wrong_keys(keys, ADDRESS, 2) == ["unauthorized", "overloaded"]
    for number in range(10_000):  # only so many addresses are counted
        wrong_keys(keys, f"address-{number}", 1)
    assert wrong_keys(keys, ADDRESS, 1) == ["unauthorized"]


@pytest.mark.parametrize(
    ("address", "other", "is_same"),
    [
        (ADDRESS, "192.0.2.2", False),
        (ADDRESS, "::ffff:192.0.2.1", True),
        (ADDRESS, "", False),
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
    ],
)
def test_rate_of_an_address(keys_file: Path, address: str, other: str, is_same: bool) -> None:
    keys = ApiKeys.load(keys_file)
    wrong_keys(keys, address, 10)
    assert wrong_keys(keys, other, 1) == ["overloaded" if is_same else "unauthorized"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"  {HASH.upper()}\t", KeyEntry(sha256=HASH, name="key-1")),
        (f"{HASH}  max_concurrent=4", KeyEntry(sha256=HASH, name="key-1", max_concurrent=4)),
        (
            f"{HASH} name=a.B-1_c requests_per_minute=60 megapixels_per_minute=100",
            KeyEntry(
                sha256=HASH, name="a.B-1_c", requests_per_minute=60, megapixels_per_minute=100
            ),
        ),
    ],
)
def test_line_has_a_hash_and_options(line: str, expected: KeyEntry) -> None:
    assert parse_keys(f"\n{line}\n\n") == [expected]


def test_keys_without_a_name_are_numbered() -> None:
    entries = parse_keys(f"{HASH}\n\n{hash_of('second')} name=b\n{hash_of('third')}")
    assert [entry.name for entry in entries] == ["key-1", "b", "key-3"]
    assert parse_keys(" \n\n") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a-secret", ""),
        (HASH[:-1], ""),
        (f"{HASH}0", ""),
        ("g" * 64, ""),
        (f"# {HASH}", ""),
        (
            f"{HASH} a-secret",
            "unknown or repeated option; the options are name, requests_per_minute",
        ),
        (f"{HASH} sha256=a-secret", "unknown or repeated option"),
        (f"{HASH} max_concurrent=1 max_concurrent=2", "unknown or repeated option"),
        (f"{HASH} max_concurrent", "invalid max_concurrent"),
        (
            f"{HASH} max_concurrent=0",
            "invalid max_concurrent: Input should be greater than or equal to 1",
        ),
        (
            f"{HASH} requests_per_minute=a-secret",
            "invalid requests_per_minute: Input should be a valid",
        ),
        (f"{HASH} megapixels_per_minute=1.5", "invalid megapixels_per_minute"),
        (f"{HASH} name=a,secret", "invalid name"),
        (f"{HASH} name={'a' * 65}", "invalid name"),
        (f"{hash_of('second').upper()} name=b", "its SHA-256 repeats that of an earlier entry"),
    ],
)
def test_invalid_line_is_not_quoted(line: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE: entry 2: {message}") as caught:
        parse_keys(f"{hash_of('second')}\n{line}\n")
    assert "secret" not in str(caught.value)
    assert line not in str(caught.value)
    assert caught.value.__cause__ is None


def test_changed_file_is_reloaded(
    keys_file: Path, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "service.admission.api_keys")
    keys = ApiKeys.load(keys_file, clock)
    quota = keys.check("Bearer first", ADDRESS)
    quota.take_request()
    keys_file.write_text(f"{HASH} requests_per_minute=1\n{hash_of('new')}\n")
    clock.now_s += 0.9
    assert not is_accepted(keys, "new")
    clock.now_s += 0.1
    assert is_accepted(keys, "new")
    assert not is_accepted(keys, "second")
    assert keys.check("Bearer first", ADDRESS) is quota  # with what it has used
    keys_file.write_text(f"{HASH} requests_per_minute=2\n")
    clock.now_s += 1
    keys.check("Bearer first", ADDRESS).take_request(2)
    assert caplog.messages == ["reloaded 2 API keys", "reloaded 1 API keys"]


def test_replaced_file_is_reloaded(keys_file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(keys_file, clock)
    other = keys_file.with_name("other")
    other.write_text(keys_file.read_text().replace(HASH, hash_of("third")))
    os.utime(other, ns=(keys_file.stat().st_atime_ns, keys_file.stat().st_mtime_ns))
    other.rename(keys_file)
    clock.now_s += 1
    assert is_accepted(keys, "third")


@pytest.mark.parametrize(
    "text", ["no hash\n", "", HASH, pytest.param("\n" * 10_000_001, id="large"), None]
)
def test_malformed_file_keeps_the_keys(
    keys_file: Path, clock: FakeClock, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    keys = ApiKeys.load(keys_file, clock)
    if text is None:
        keys_file.unlink()
    else:
        keys_file.write_text(text)
    for _ in range(3):
        clock.now_s += 1
        assert is_accepted(keys, "first")
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert "the API keys are unchanged" in record.getMessage()
    keys_file.write_text(f"{hash_of('new')}\n")
    clock.now_s += 1
    assert is_accepted(keys, "new")


def test_bucket_refills_evenly(clock: FakeClock) -> None:
    bucket = TokenBucket(60, clock)
    assert [bucket.take(1) for _ in range(60)] == [0] * 60
    assert bucket.take(1) == pytest.approx(1)
    clock.now_s += 0.5
    assert bucket.take(1) == pytest.approx(0.5)
    clock.now_s += 0.5
    assert bucket.take(1) == 0
    clock.now_s += 3600
    assert bucket.take(60) == 0
    assert bucket.take(0.001) > 0


def quota_of(clock: FakeClock, **limits: int) -> Quota:
    return Quota("batch", QuotaLimits(**limits), clock)


def test_requests_above_the_rate(clock: FakeClock) -> None:
    quota = quota_of(clock, requests_per_minute=2)
    quota.take_request(2)
    reached = "the key 'batch' has reached its limit of 2 requests per minute; retry after 30 s"
    with pytest.raises(Overloaded, match=reached):
        quota.take_request()
    clock.now_s += 30
    quota.take_request()
    with pytest.raises(InvalidRequest, match="its tiles count as 3 requests"):
        quota.take_request(3)


def test_megapixels_above_the_rate(clock: FakeClock) -> None:
    quota = quota_of(clock, megapixels_per_minute=6)
    quota.take_pixels(5 * MEGAPIXEL)
    with pytest.raises(Overloaded, match="6 megapixels per minute; retry after 20 s"):
        quota.take_pixels(3 * MEGAPIXEL)
    quota.take_pixels(MEGAPIXEL)
    clock.now_s += 30
    quota.take_pixels(3 * MEGAPIXEL)
    too_large = r"has 6\.5 megapixels; the key 'batch' may send 6 per minute"
    with pytest.raises(ServiceError, match=too_large) as caught:
        quota.take_pixels(6_500_000)
    assert (caught.value.code, caught.value.param) == ("image_too_large", "image")


def test_concurrent_requests_of_a_quota(clock: FakeClock) -> None:
    quota = quota_of(clock, max_concurrent=2)
    quota.begin_request()
    quota.begin_request()
    with pytest.raises(Overloaded, match="2 concurrent requests; retry after 1 s"):
        quota.begin_request()
    quota.end_request()
    quota.begin_request()


KEY = {"Authorization": "Bearer mine"}
IMAGE = encoded(scene_image(size_wh=(1000, 500)), "JPEG", quality=10)  # half a megapixel


def predict(api: Client, image: bytes = IMAGE, path: str = "/v1/predict") -> httpx.Response:
    return api.send("POST", path, data={"task": "ocr"}, files={"image": image}, headers=KEY)


def test_every_route_counts_requests(clock: FakeClock) -> None:
    api = client(None, api_keys("mine", "requests_per_minute=3", clock))
    assert api.get("/v1/models").status_code == 401  # uses no quota
    assert api.get("/v1/models", headers=KEY).status_code == 200
    assert predict(api).status_code == 200
    assert predict(api, b"").status_code == 415
    for response in (api.get("/v1/tasks", headers=KEY), predict(api)):
        assert error_of(response)["code"] == "overloaded"
        assert response.headers["retry-after"] == "20"
    clock.now_s += 20
    assert predict(api).status_code == 200


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/compare"])
def test_pixels_count_once_per_request(path: str, clock: FakeClock) -> None:
    api = client(None, api_keys("mine", "megapixels_per_minute=1", clock))
    assert [predict(api, path=path).status_code for _ in range(2)] == [200, 200]
    truncated = IMAGE[: len(IMAGE) // 2]  # decoding it would fail
    response = predict(api, truncated, path)
    assert error_of(response)["code"] == "overloaded"
    assert response.headers["retry-after"] == "30"
