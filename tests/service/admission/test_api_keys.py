import hashlib
from pathlib import Path

import pytest

from service.admission.api_keys import ApiKeys
from service.errors import Overloaded, Unauthorized
from service.settings import SettingsError

ADDRESS = "192.0.2.1"


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n\n  {hash_of('second').upper()}  \n")
    return file


@pytest.mark.parametrize("authorization", [None, "", "Bearer anything", "nonsense"])
def test_without_a_file_no_key_is_required(authorization: str | None) -> None:
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
def test_other_keys_and_schemes_are_refused(keys_file: Path, authorization: str) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer KEY"):
        ApiKeys.load(keys_file).check(authorization, ADDRESS)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer "])
def test_missing_key_is_reported_as_missing(keys_file: Path, authorization: str | None) -> None:
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
def test_malformed_line_prevents_the_start_and_is_not_quoted(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n{line}\n")
    with pytest.raises(
        SettingsError, match="DIPTYCH_API_KEYS_FILE: entry 2: it must start with a SHA-256"
    ) as caught:
        ApiKeys.load(file)
    assert line not in str(caught.value)


def test_unreadable_file_prevents_the_start(tmp_path: Path) -> None:
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


def test_wrong_keys_above_the_rate_are_refused_and_right_ones_never(keys_file: Path) -> None:
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
