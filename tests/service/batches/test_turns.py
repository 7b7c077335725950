"""Which of the waiting batches is next."""

from service.batches.turns import WaitingBatches


def waiting(*batches: tuple[str, str]) -> WaitingBatches:
    found = WaitingBatches()
    for owner, batch_id in batches:
        found.add(owner, batch_id)
    return found


def taken(batches: WaitingBatches) -> list[str]:
    ids = []
    while (found := batches.take()) is not None:
        ids.append(found[1])
    return ids


def test_keys_take_turns_and_the_oldest_batch_of_a_key_is_first() -> None:
    assert taken(waiting(("a", "3"), ("a", "2"), ("b", "5"), ("a", "1"), ("b", "4"))) == ["1", "4", "2", "5", "3"]


def test_the_key_whose_turn_is_longest_ago_is_next_also_when_it_comes_back() -> None:
    batches = waiting(("a", "1"), ("b", "2"))
    assert (batches.take(), batches.take(), batches.take()) == (("a", "1"), ("b", "2"), None)
    batches.add("b", "3")
    batches.add("a", "4")
    assert taken(batches) == ["4", "3"]


def test_a_busy_key_waits() -> None:
    batches = waiting(("a", "1"), ("b", "2"))
    assert batches.take(busy={"a"}) == ("b", "2")
    assert batches.take(busy={"a"}) is None
    assert batches.take() == ("a", "1")


def test_a_removed_batch_has_no_turn() -> None:
    batches = waiting(("a", "1"), ("a", "2"))
    assert batches.remove("a", "1")
    assert not batches.remove("a", "1")
    assert not batches.remove("b", "2")
    assert taken(batches) == ["2"]
