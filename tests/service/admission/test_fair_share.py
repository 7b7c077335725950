from hypothesis import given
from hypothesis import strategies as st

from service.admission.fair_share import FairShare


def test_one_client_alone_may_have_all() -> None:
    shares = FairShare(10)
    shares.add("a", 7)
    assert shares.excess("a", 3) == 0
    assert shares.excess("a", 4) == 1


def test_a_heavy_client_keeps_no_other_out() -> None:
    shares = FairShare(10)
    shares.add("heavy", 10)
    assert shares.excess("light", 5) <= 0
    assert shares.excess("light", 6) > 0
    shares.add("light", 1)
    assert shares.excess("heavy", 1) > 0
    shares.remove("heavy", 6)
    assert shares.excess("heavy", 1) <= 0


def test_a_client_without_anything_pending_is_forgotten() -> None:
    shares = FairShare(10)
    shares.add("a", 2)
    shares.remove("a", 2)
    assert shares.num_clients_with("b") == 1
    assert shares.total == 0


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 5))))
def test_all_together_never_have_more_than_twice_the_bound(asked: list[tuple[str, int]]) -> None:
    shares = FairShare(10)
    for client, amount in asked:
        if shares.excess(client, amount) <= 0:
            shares.add(client, amount)
    assert shares.total <= 20
