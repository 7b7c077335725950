from dataclasses import dataclass

from runners.recently_used import RecentlyUsed


@dataclass(frozen=True)
class Value:
    num_bytes: int


def test_the_least_recently_used_go_until_the_rest_fits() -> None:
    values = RecentlyUsed[str, Value](10)
    assert [values.keep(key, Value(3)) for key in "abc"] == [[], [], []]
    assert values.get("a") == Value(3)
    assert values.keep("d", Value(6)) == [("b", Value(3)), ("c", Value(3))]
    assert [values.get(key) for key in "abcd"] == [Value(3), None, None, Value(6)]


def test_what_is_too_large_alone_takes_nobodys_place() -> None:
    values = RecentlyUsed[str, Value](10)
    values.keep("a", Value(10))
    assert values.keep("b", Value(11)) == [("b", Value(11))]
    assert (values.get("a"), values.get("b")) == (Value(10), None)
