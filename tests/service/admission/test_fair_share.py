import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_queue import FairShare
from service.errors import Overloaded


def test_single_client_may_use_the_whole_limit() -> None:
    shares = FairShare(10)
    shares.add("a", 7)
    assert shares.excess("a", 3) == 0
    assert shares.excess("a", 4) == 1


def test_a_client_alone_may_not_use_more_than_the_most_of_one_client() -> None:
    shares = FairShare(10, max_of_client=4)
    shares.take("a", 4, "things")
    with pytest.raises(
        Overloaded, match="this client has 4 of 4 things, all clients together 4 of 20"
    ):
        shares.take("a", 1, "things")
    shares.take("b", 4, "things")
    assert shares.total == 8


def test_heavy_client_does_not_lock_out_another() -> None:
    shares = FairShare(10)
    shares.add("heavy", 10)
    assert shares.excess("light", 5) <= 0
    assert shares.excess("light", 6) > 0
    shares.add("light", 1)
    assert shares.excess("heavy", 1) > 0
    shares.remove("heavy", 6)
    assert shares.excess("heavy", 1) <= 0


def test_client_without_pending_work_is_forgotten() -> None:
    shares = FairShare(10)
    shares.add("a", 2)
    shares.remove("a", 2)
    assert shares.num_clients_with("b") == 1
    assert shares.total == 0


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 5))))
def test_all_clients_together_stay_within_twice_the_limit(requests: list[tuple[str, int]]) -> None:
    shares = FairShare(10)
    for client, amount in requests:
        if shares.excess(client, amount) <= 0:
            shares.add(client, amount)
    assert shares.total <= 20
