"""The queued sequences of a decoder, fair to its clients.

Problem: slots and the decoder's time are scarce, and one client may submit hundreds of sequences.
First in, first out, all others would wait for them; prefills of these delay the steps of sequences
that are live; and a slot that is taken stays so for a whole answer.

Solution:

    order      next is a sequence of the client with the fewest slots; equal ones alternate
    turns      after a prefill of a client, its next one waits until steps of others took as long
    room       while others are active, too, a client leaves some slots free, and prefills are small
    places     a client alone may queue `max_waiting`, each of n clients 1/n of it

Invariants:
- a client alone has the whole decoder, and one with queued sequences always gets a turn: its own
  when no other has live sequences, else as these take their steps;
- sequences of a client leave in the order of submission: a large one is never overtaken;
- a call's sequences are queued together or not at all;
- work in the gaps between clients (client "") never takes a client's room.

Not safe for threads: its user has a lock. Knows no decoder.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from runners.decoder.sequences import (
    LiveSequence,
    SequenceRequest,
    TokenListener,
    WrittenSequence,
)
from runners.errors import SequenceError
from runners.options import SchedulerLimits

_ACTIVE_S = 10.0  # since the last submission or admission of a client
# share of the slots that one of several clients may take; a row of a GPU's step costs little
_SHARED_SLOTS = {"cpu": 0.5, "cuda": 0.75}
# sequences of one of several clients in a prefill; a GPU replays one of 8 nearly as fast
_SHARED_PREFILL = {"cpu": 1, "cuda": 8}


@dataclass(slots=True)
class ScheduledSequence:
    """A submitted sequence, from the queue to its result."""

    sequence: LiveSequence
    submitted_s: float
    future: "Future[WrittenSequence]" = field(default_factory=Future)
    admitted_s: float = 0.0
    prefilled_s: float = 0.0
    num_notified: int = 0  # tokens
    is_retried: bool = False  # starts again after a failed step

    @property
    def request(self) -> SequenceRequest:
        return self.sequence.request

    def notify(self, on_tokens: TokenListener) -> None:
        settled = self.sequence.settled_token_ids
        if len(settled) > self.num_notified:
            on_tokens(settled[self.num_notified :])
            self.num_notified = len(settled)

    def admit(self, now_s: float) -> bool:
        """Return True, or resolve a sequence that was cancelled or is too late."""
        if self.future.cancelled() or now_s > self.request.deadline_s:
            message = "the deadline passed before the sequence was admitted"
            self.resolve(SequenceError("deadline_exceeded", message))
            return False
        self.admitted_s = now_s
        return True

    def resolve(self, error: Exception | None = None) -> None:
        """Set the future's result or exception; of a cancelled future, only notify its waiters."""
        if not self.future.set_running_or_notify_cancel():
            return
        error = error or self.sequence.error
        if error is not None:
            self.future.set_exception(error)
            return
        written = WrittenSequence(
            self.sequence.generated(),
            queue_s=self.admitted_s - self.submitted_s,
            prefill_s=self.prefilled_s - self.admitted_s,
            decode_s=time.monotonic() - self.prefilled_s,
        )
        self.future.set_result(written)


class ClientQueues:
    """A queue for each client, within `limits`."""

    def __init__(self, limits: SchedulerLimits, device: str, now: Callable[[], float]) -> None:
        self.num_queued = 0
        self._limits = limits
        self._max_shared_slots = round(limits.num_slots * _SHARED_SLOTS[device])
        self._max_shared_prefill = _SHARED_PREFILL[device]
        self._now = now
        self._queues: dict[str, deque[ScheduledSequence]] = {}  # the last admitted client is last
        self._active_s: dict[str, float] = {}  # when a client was last active, the latest last
        self._steps_s = 0.0  # duration of all steps so far
        self._turns_s: dict[str, float] = {}  # the same when it is a client's turn again

    def submit(self, client: str, submitted: Sequence[ScheduledSequence]) -> None:
        """Queue all or raise `SequenceError` if they exceed the client's share of places."""
        max_waiting = self._limits.max_waiting
        num_queued = self.num_queued + len(submitted)
        num_of_client = len(self._queues.get(client, ())) + len(submitted)
        share = max_waiting // len(self._queues.keys() | {client})
        is_fair = num_of_client <= share and num_queued <= 2 * max_waiting
        if num_queued > max_waiting and not is_fair:
            queued = f"{self.num_queued} sequences are queued, {len(submitted)} were submitted"
            raise SequenceError("overloaded", f"{queued}, at most {max_waiting} are allowed")
        if submitted:
            self._note_active(client)
            self._queues.setdefault(client, deque()).extend(submitted)
            self.num_queued = num_queued

    def take(self, live: Iterable[SequenceRequest]) -> list[ScheduledSequence]:
        """Dequeue sequences that have slots and fit the token budget, or one that exceeds it."""
        slots: Counter[str] = Counter()
        for request in live:
            slots[request.client] += request.num_beams
        now_s = self._now()
        taken: list[ScheduledSequence] = []
        num_taken: Counter[str] = Counter()
        longest = 0
        while (client := self._next_client(slots)) is not None:
            request = self._queues[client][0].request
            longest = max(longest, request.num_prefix_tokens)
            if slots.total() + request.num_beams > self._limits.num_slots:
                break
            if taken and longest * (len(taken) + 1) > self._limits.max_prefill_tokens:
                break
            if num_taken[client] == self._max_shared_prefill and self._has_others(client):
                break
            scheduled = self._pop(client)
            if scheduled.admit(now_s):
                taken.append(scheduled)
                num_taken[client] += 1
                slots[client] += request.num_beams
                self._note_active(client)
        return taken

    def note_prefill(self, clients: Iterable[str], duration_s: float) -> None:
        turns_s = {client: turn for client, turn in self._turns_s.items() if turn > self._steps_s}
        self._turns_s = turns_s | dict.fromkeys(clients, self._steps_s + duration_s)

    def note_step(self, duration_s: float) -> None:
        self._steps_s += duration_s

    def _pop(self, client: str) -> ScheduledSequence:
        queue = self._queues.pop(client)
        scheduled = queue.popleft()
        if queue:
            self._queues[client] = queue  # behind the others
        self.num_queued -= 1
        return scheduled

    def _next_client(self, slots: Counter[str]) -> str | None:
        """Return the client whose turn it is, if any; `slots`: those of each client."""
        clients: list[str] = []
        for client, queue in self._queues.items():
            is_alone = slots[client] == slots.total()
            is_in_turn = is_alone or self._turns_s.get(client, 0) <= self._steps_s
            num_slots = slots[client] + queue[0].request.num_beams
            has_room = num_slots <= self._max_shared_slots or not slots[client]
            if is_in_turn and (has_room or not self._has_others(client)):
                clients.append(client)
        return min(clients, key=slots.__getitem__, default=None)

    def _has_others(self, client: str) -> bool:
        """Return True if another client is active."""
        now_s = self._now()
        while self._active_s:
            longest_inactive, active_s = next(iter(self._active_s.items()))
            if now_s - active_s < _ACTIVE_S:
                break
            del self._active_s[longest_inactive]
        return len(self._active_s) > (client in self._active_s)

    def _note_active(self, client: str) -> None:
        if client:
            self._active_s.pop(client, None)
            self._active_s[client] = self._now()
