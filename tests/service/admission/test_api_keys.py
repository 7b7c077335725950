import hashlib
from pathlib import Path

import pytest

from service.admission.api_keys import ApiKeys
from service.errors import Unauthorized
from service.settings import SettingsError


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n\n  {hash_of('second').upper()}  \n")
    return file


@pytest.mark.parametrize("authorization", [None, "", "Bearer anything", "nonsense"])
def test_without_a_file_no_key_is_required(authorization: str | None) -> None:
    ApiKeys.load(None).check(authorization)


@pytest.mark.parametrize("authorization", ["Bearer first", "bearer second", "BEARER   first  "])
def test_key_of_the_file_is_accepted(keys_file: Path, authorization: str) -> None:
    ApiKeys.load(keys_file).check(authorization)


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
        ApiKeys.load(keys_file).check(authorization)


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer "])
def test_missing_key_is_reported_as_missing(keys_file: Path, authorization: str | None) -> None:
    with pytest.raises(Unauthorized, match=r"^no API key was sent"):
        ApiKeys.load(keys_file).check(authorization)


def test_error_does_not_quote_the_key(keys_file: Path) -> None:
    with pytest.raises(Unauthorized) as caught:
        ApiKeys.load(keys_file).check("Bearer my-secret")
    assert "my-secret" not in caught.value.message


def test_empty_file_accepts_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("")
    with pytest.raises(Unauthorized):
        ApiKeys.load(file).check("Bearer ")


@pytest.mark.parametrize("line", ["secret", hash_of("a")[:-1], hash_of("a") + "0", "g" * 64, f"# {hash_of('a')}"])
def test_malformed_line_prevents_the_start_and_is_not_quoted(tmp_path: Path, line: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{hash_of('first')}\n{line}\n")
    with pytest.raises(SettingsError, match="DIPTYCH_API_KEYS_FILE: entry 2: it must start with a SHA-256") as caught:
        ApiKeys.load(file)
    assert line not in str(caught.value)


def test_unreadable_file_prevents_the_start(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\0")
    for file in (tmp_path / "missing", tmp_path, tmp_path / "binary"):
        with pytest.raises(SettingsError, match=f"DIPTYCH_API_KEYS_FILE='{file}' cannot be read"):
            ApiKeys.load(file)
