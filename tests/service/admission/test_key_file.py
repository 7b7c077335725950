import pytest

from service.admission.api_keys import KeyEntry, parse_keys
from service.admission.quotas import QuotaLimits
from service.settings import SettingsError
from tests.support.api_keys import hash_of

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
def test_invalid_option_is_named_without_its_value(options: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE: entry 2: {message}") as caught:
        parse_keys(f"{hash_of('second')}\n{HASH} {options}")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_repeated_key_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="entry 2: its SHA-256 repeats that of an earlier entry"
    ):
        parse_keys(f"{HASH} max_concurrent=1\n{HASH.upper()}")
