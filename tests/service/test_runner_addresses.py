from collections.abc import Sequence

import pytest

from service.runner_addresses import RunnerAddresses, RunnerUrl
from tests.support.core_calls import run


class Names:
    """Knows two names."""

    async def addresses(self, host: str) -> Sequence[str]:
        return {"two.example": ["10.0.0.1", "fd00::2"], "one.example": ["10.0.0.1"]}[host]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=http://10.0.0.1:3000", ("a", "10.0.0.1", 3000)),
        ("a=http://encoders.example/", ("a", "encoders.example", 80)),
        ("a=http://[fd00::1]:3000", ("a", "fd00::1", 3000)),
    ],
)
def test_a_pair_is_a_model_with_host_and_port(text: str, expected: tuple[str, str, int]) -> None:
    url = RunnerUrl.parse(text)
    assert (url.model_id, url.host, url.port) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "http://10.0.0.1:3000",
        "=http://10.0.0.1:3000",
        "a=10.0.0.1:3000",
        "a=https://10.0.0.1:3000",
        "a=http://10.0.0.1:3000/path",
        "a=http://10.0.0.1:3000/?q",
        "a=http://user@10.0.0.1:3000",
        "a=http://:3000",
        "a=http://10.0.0.1:port",
        "a=http://10.0.0.1:70000",
        "a=http://[10.0.0.1:3000",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no pair of a model and a URL"):
        RunnerUrl.parse(text)


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        (["http://10.0.0.9:1", "http://10.0.0.9:2"], {"http://10.0.0.9:1", "http://10.0.0.9:2"}),
        (["http://two.example:1"], {"http://10.0.0.1:1", "http://[fd00::2]:1"}),
        (["http://two.example:1", "http://one.example:1"], {"http://10.0.0.1:1", "http://[fd00::2]:1"}),
        (["http://one.example:1", "http://one.example:2"], {"http://10.0.0.1:1", "http://10.0.0.1:2"}),
    ],
)
def test_a_replica_is_at_each_address_once(urls: list[str], expected: set[str]) -> None:
    addresses = RunnerAddresses([RunnerUrl.parse(f"a={url}") for url in urls], Names())
    assert run(addresses.current()) == expected


@pytest.mark.parametrize(
    ("urls", "expected"), [(["http://10.0.0.9:1", "http://[fd00::1]:1"], True), (["http://one.example:1"], False)]
)
def test_numbers_are_not_looked_up_again(urls: list[str], expected: bool) -> None:
    assert RunnerAddresses([RunnerUrl.parse(f"a={url}") for url in urls], Names()).are_fixed is expected
