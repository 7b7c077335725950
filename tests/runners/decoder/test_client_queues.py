"""The order, turns, room and places of several clients."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch

from runners.decoder.batch import start_sequence
from runners.decoder.scheduler import ClientQueues, ScheduledSequence
from runners.decoder.sequences import SequenceRequest
from runners.errors import SequenceError
from runners.options import SchedulerLimits
from tests.support.api_keys import FakeClock
from tests.support.fake_decoder import FAKE_RULES
from tests.support.token_choices import is_failure

PREFILL_S = 3 / 8
STEP_S = 1 / 8


@dataclass(slots=True)
class Queues:
    """The queues of a decoder with 8 slots, and its live sequences."""

    device: str = "cpu"
    max_prefill_tokens: int = 1000
    clock: FakeClock = field(default_factory=FakeClock)
    live: list[ScheduledSequence] = field(default_factory=list)
    queues: ClientQueues = field(init=False)

    def __post_init__(self) -> None:
        limits = SchedulerLimits(8, 9, self.max_prefill_tokens)
        self.queues = ClientQueues(limits, self.device, self.clock)

    def submit(self, client: str, number: int = 1, num_beams: int = 1) -> list[ScheduledSequence]:
        request = SequenceRequest(torch.zeros(2, 4), (5,), 9, client=client, num_beams=num_beams)
        submitted: list[ScheduledSequence] = []
        for _ in range(number):
            sequence = start_sequence(request, FAKE_RULES)
            submitted.append(ScheduledSequence(sequence, self.clock()))
        self.queues.submit(client, submitted)
        return submitted

    def take(self) -> str:
        """Prefill what is taken; return its clients."""
        taken = self.queues.take([scheduled.sequence.request for scheduled in self.live])
        self.live += taken
        clients = [scheduled.sequence.request.client for scheduled in taken]
        if taken:
            self.queues.note_prefill(set(clients), PREFILL_S)
        return "".join(clients)

    def passes(self, number: int) -> list[str]:
        """Return the clients of each prefill, with a step after each."""
        clients: list[str] = []
        for _ in range(number):
            clients.append(self.take())
            self.queues.steps_s += STEP_S
        return clients

    def end(self, ended: Sequence[ScheduledSequence]) -> None:
        self.live = [scheduled for scheduled in self.live if scheduled not in ended]


def test_a_client_alone_has_all_slots() -> None:
    queues = Queues()
    queues.submit("a", 9)
    assert queues.passes(2) == ["aaaaaaaa", ""]
    queues.end(queues.live[:2])
    assert queues.take() == "a"
    assert queues.queues.num_queued == 0


def test_clients_alternate_and_the_one_with_fewest_slots_is_next() -> None:
    queues = Queues("cuda")
    queues.submit("a", 3)
    queues.submit("b", 2)
    queues.submit("c", num_beams=2)
    assert queues.take() == "abcaba"
    queues.end([scheduled for scheduled in queues.live if scheduled.sequence.request.client != "a"])
    queues.submit("a")
    queues.submit("d")
    assert queues.take() == "d"


def test_a_served_client_is_behind_the_others() -> None:
    queues = Queues()
    for client in "ab":
        queues.submit(client, 2, num_beams=8)
    taken: list[str] = []
    for _ in range(4):
        taken.append(queues.take())
        queues.end(queues.live)
    assert taken == ["a", "b", "a", "b"]


def test_sequences_of_a_client_keep_their_order() -> None:
    queues = Queues()
    first, *_ = queues.submit("a")
    wide, *_ = queues.submit("a", num_beams=8)
    last, *_ = queues.submit("a")
    taken = [queues.take()]
    assert queues.live == [first]
    queues.end([first])
    taken.append(queues.take())
    assert queues.live == [wide]
    queues.end([wide])
    assert [*taken, queues.take()] == ["a", "a", "a"]
    assert queues.live == [last]


@pytest.mark.parametrize(
    ("device", "prefills"), [("cpu", ["ab", "", "", "a"]), ("cuda", ["abaaaa"])]
)
def test_a_client_waits_until_steps_took_as_long_as_its_prefill(
    device: str, prefills: list[str]
) -> None:
    queues = Queues(device)
    queues.submit("a", 5)
    queues.submit("b")
    assert queues.passes(len(prefills)) == prefills
    queues.submit("c")  # not delayed by the prefills of others
    assert queues.take() == "c"
    assert queues.take() == ""


def test_a_client_whose_sequences_alone_are_live_waits_for_no_step() -> None:
    queues = Queues()
    queues.submit("b")
    queues.submit("a", 3)
    assert queues.take() == "ba"
    queues.end(queues.live[:1])
    assert queues.take() == "a"


@pytest.mark.parametrize(("device", "num_slots"), [("cpu", 4), ("cuda", 6)])
def test_a_client_leaves_slots_while_others_are_active(device: str, num_slots: int) -> None:
    queues = Queues(device)
    queues.submit("b")
    queues.clock.now_s += 5
    assert queues.take() == "b"
    queues.end(queues.live)
    queues.submit("a", 8)
    assert "".join(queues.passes(40)) == "a" * num_slots
    queues.clock.now_s += 9.9
    assert queues.take() == ""
    queues.clock.now_s += 0.2  # 10 s after the last admission of b
    assert queues.take() == "a" * (8 - num_slots)


def test_each_client_is_active_until_its_own_time_has_passed() -> None:
    queues = Queues()
    for client, elapsed_s in (("b", 1.0), ("a", 8.0), ("b", 2.0)):
        queues.submit(client)
        queues.take()
        queues.end(queues.live)
        queues.clock.now_s += elapsed_s
    queues.submit("b", 8)  # 10 s after a
    assert queues.take() == "b" * 8


def test_a_wide_sequence_of_one_of_several_clients_gets_its_slots() -> None:
    queues = Queues()
    queues.submit("b")
    queues.submit("a", num_beams=8)
    assert queues.take() == "b"
    queues.end(queues.live)
    assert queues.take() == "a"


def test_a_prefill_stays_within_its_budget() -> None:
    queues = Queues(max_prefill_tokens=6)
    queues.submit("a", 3)
    assert queues.passes(3) == ["aa", "a", ""]


def test_cancelled_and_late_sequences_are_passed_over() -> None:
    queues = Queues()
    cancelled, late, *_ = queues.submit("a", 3)
    cancelled.future.cancel()
    late.sequence.request = replace(late.sequence.request, deadline_s=-1.0)
    assert queues.take() == "a"
    with pytest.raises(SequenceError, check=is_failure("deadline_exceeded")):
        late.future.result(0)
    assert queues.queues.num_queued == 0


def test_a_newcomer_has_one_share_of_the_places() -> None:
    queues = Queues()
    queues.submit("a", 9)
    with pytest.raises(SequenceError, check=is_failure("overloaded")):
        queues.submit("b", 5)
    queues.submit("b", 4)
    assert queues.queues.num_queued == 13


def test_a_full_queue_of_a_client_refuses_no_other() -> None:
    queues = Queues()
    queues.submit("a", 9)
    queues.submit("b", 4)
    for client in "ab":
        with pytest.raises(SequenceError, check=is_failure("overloaded")):
            queues.submit(client)
    for client in "cd":
        queues.submit(client, 2)
    queues.submit("e")  # twice as many are queued
    with pytest.raises(SequenceError, check=is_failure("overloaded")):
        queues.submit("f")
    assert queues.queues.num_queued == 18
