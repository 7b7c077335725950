import logging
import os
from asyncio import run
from pathlib import Path

import pytest

from service.admission.api_keys import ApiKeys
from service.errors import Overloaded, Unauthorized
from tests.support.api_keys import FakeClock, hash_of


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


def test_changed_file_is_reloaded_at_most_once_a_second_and_its_keys_are_counted_in_the_log(
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


def test_replaced_file_of_the_same_time_and_size_is_reloaded(file: Path, clock: FakeClock) -> None:
    keys = ApiKeys.load(file, clock)
    other = file.with_name("other")
    other.write_text(file.read_text().replace(hash_of("old"), hash_of("new")))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.rename(file)
    clock.now_s += 1
    assert accepted(keys) == ["new"]


@pytest.mark.parametrize("text", ["no hash", None])
def test_malformed_or_missing_file_keeps_the_keys_and_is_logged_once(
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


def test_unchanged_key_keeps_its_used_quota_and_a_changed_one_starts_again(
    file: Path, clock: FakeClock
) -> None:
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
