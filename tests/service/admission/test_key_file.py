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
            f"{HASH} name=a.B-1_c requests_per_minute=60 megapixels_per_minute=100 max_concurrent=4",
            KeyEntry(HASH, "a.B-1_c", QuotaLimits(60, 100, 4)),
        ),
    ],
)
def test_a_line_is_a_hash_and_options(line: str, expected: KeyEntry) -> None:
    assert parse_keys(f"\n{line}\n\n") == (expected,)


def test_keys_without_a_name_are_called_by_their_place() -> None:
    entries = parse_keys(f"{HASH}\n\n{hash_of('second')} name=b\n{hash_of('third')}")
    assert [entry.name for entry in entries] == ["key-1", "b", "key-3"]


def test_no_line_is_no_key() -> None:
    assert parse_keys(" \n\n") == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("a-secret", "has an option that is unknown or there twice; there are name, requests_per_minute"),
        ("a-secret=1", "has an option that is unknown"),
        ("max_concurrent=1 max_concurrent=2", "has an option that is unknown or there twice"),
        ("max_concurrent", "has a bad max_concurrent"),
        ("max_concurrent=", "has a bad max_concurrent"),
        ("max_concurrent=0", "has a bad max_concurrent: Input should be greater than or equal to 1"),
        ("requests_per_minute=a-secret", "has a bad requests_per_minute: Input should be a valid integer"),
        ("requests_per_minute=1.5", "has a bad requests_per_minute"),
        ("megapixels_per_minute=-1", "has a bad megapixels_per_minute"),
        ("name=", "has a bad name"),
        ("name=a,secret", "has a bad name"),
        (f"name={'a' * 65}", "has a bad name"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed_and_without_what_was_written(options: str, message: str) -> None:
    with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE: entry 2 {message}") as caught:
        parse_keys(f"{hash_of('second')}\n{HASH} {options}")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_same_key_twice_is_refused() -> None:
    with pytest.raises(SettingsError, match="entry 2 has the SHA-256 of one before it"):
        parse_keys(f"{HASH} max_concurrent=1\n{HASH.upper()}")
