"""The scheduler of a decoder: continuous batching in one thread.

    while sequences are queued or live:
        remove cancelled sequences
        admit queued ones, as many as have slots and fit the token budget of a prefill
        decode one token of every live sequence
        resolve the futures of those that ended

Slots and the decoder's time are scarce, and one client may submit hundreds of sequences. First in,
first out, all others would wait for them; prefills of these delay the steps of sequences that are
live; and a slot that is taken stays so for a whole answer. Hence the queues of clients:

    order      next is a sequence of the client with the fewest slots; equal ones alternate
    turns      after a prefill of a client, its next one waits until steps of others took as long
    room       while others are active, too, a client leaves some slots free, and prefills are small
    places     a client alone may queue `max_waiting`, each of n clients 1/n of it

Invariants:
- every future is resolved exactly once: by its end, its cancellation, its deadline or the error
  that ended it; no error ends the thread, a lost device ends the process;
- a failed prefill fails its sequences alone; those of a failed step start again, once, in two
  halves: until both have ended, no other is admitted;
- a listener receives each token once, also of a sequence that starts again;
- the batch and `_live` belong to the thread; callers share only the queues, under `_changed`;
- a client alone has the whole decoder, and one with queued sequences always gets a turn: its own
  when no other has live sequences, else as these take their steps;
- sequences of a client leave in the order of submission: a large one is never overtaken;
- a call's sequences are queued together or not at all.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import chain
from secrets import randbits

import torch

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.engines import NewEngine, new_engine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import (
    LiveSequence,
    SequenceRequest,
    TokenListener,
    WrittenSequence,
)
from runners.errors import SequenceError, exit_if_device_lost
from runners.kv_cache import use_decoder_stream
from runners.options import SchedulerLimits
from runners.watchdog import Watchdog
from wire.telemetry.runner_metrics import (
    BATCH_SIZE,
    LIVE_SEQUENCES,
    QUEUE_DEPTH,
    SLOTS,
    SLOTS_TAKEN,
)

logger = logging.getLogger(__name__)

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

    def notify(self, on_tokens: TokenListener) -> None:
        settled = self.sequence.settled_token_ids
        if len(settled) > self.num_notified:
            on_tokens(settled[self.num_notified :])
            self.num_notified = len(settled)

    def admit(self, now_s: float) -> bool:
        """Return True, or resolve a sequence that was cancelled or is too late."""
        if self.future.cancelled() or now_s > self.sequence.request.deadline_s:
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
    """A queue for each client, within `limits`; not safe for threads."""

    def __init__(self, limits: SchedulerLimits, device: str, now: Callable[[], float]) -> None:
        self.num_queued = 0
        self._limits = limits
        self._max_shared_slots = round(limits.num_slots * _SHARED_SLOTS[device])
        self._max_shared_prefill = _SHARED_PREFILL[device]
        self._now = now
        self._queues: dict[str, deque[ScheduledSequence]] = {}  # the last admitted client is last
        self._active_s: dict[str, float] = {}  # when a client was last active, the latest last
        self.steps_s = 0.0  # duration of all steps so far
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
            queue = self._queues[client]
            request = queue[0].sequence.request
            longest = max(longest, request.num_prefix_tokens)
            if slots.total() + request.num_beams > self._limits.num_slots:
                break
            if taken and longest * (len(taken) + 1) > self._limits.max_prefill_tokens:
                break
            if num_taken[client] == self._max_shared_prefill and self._has_others(client):
                break
            scheduled = queue.popleft()
            self.num_queued -= 1
            del self._queues[client]
            if queue:
                self._queues[client] = queue  # behind the others
            if scheduled.admit(now_s):
                taken.append(scheduled)
                num_taken[client] += 1
                slots[client] += request.num_beams
                self._note_active(client)
        return taken

    def note_prefill(self, clients: Iterable[str], duration_s: float) -> None:
        turns_s = {client: turn for client, turn in self._turns_s.items() if turn > self.steps_s}
        self._turns_s = turns_s | dict.fromkeys(clients, self.steps_s + duration_s)

    def _next_client(self, slots: Counter[str]) -> str | None:
        """Return the client whose turn it is, if any; `slots`: those of each client."""
        clients: list[str] = []
        for client, queue in self._queues.items():
            is_alone = slots[client] == slots.total()
            is_in_turn = is_alone or self._turns_s.get(client, 0) <= self.steps_s
            num_slots = slots[client] + queue[0].sequence.request.num_beams
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
        self._active_s.pop(client, None)
        self._active_s[client] = self._now()


class Scheduler:
    """Generates submitted sequences; sequences beyond `limits.num_slots` are queued."""

    def __init__(
        self,
        decoder: Decoder,
        model_id: str,
        limits: SchedulerLimits,
        make_engine: NewEngine = new_engine,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._decoder = decoder
        self._limits = limits
        self._now = now
        self._batch = LiveBatch(decoder, limits.num_slots, make_engine)
        self._live: dict[LiveSequence, ScheduledSequence] = {}
        self._retries: deque[list[ScheduledSequence]] = deque()  # halves of a failed batch
        self._changed = threading.Condition()  # guards the queues and `_is_stopping`
        self._queues = ClientQueues(limits, decoder.shape.device.type, now)
        self._is_stopping = False
        self._name = f"the decoder of {model_id}"
        self.watchdog = Watchdog(self._name, limits.stuck_after_s)
        self._thread = threading.Thread(target=self._run, name=f"decoder {model_id}", daemon=True)
        self._batch_size = BATCH_SIZE.labels(model_id, "decode")
        self._queue_depth = QUEUE_DEPTH.labels(model_id, "decode")
        self._live_sequences = LIVE_SEQUENCES.labels(model_id)
        self._slots = SLOTS.labels(model_id)
        self._slots_taken = SLOTS_TAKEN.labels(model_id)

    def start(self) -> None:
        self._slots.set(self._limits.num_slots)
        self._thread.start()

    def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[SequenceRequest]) -> "list[Future[WrittenSequence]]":
        """Queue all `requests` of a client or none.

        Raise `SequenceError` if they would exceed its share of `max_waiting`, or a request needs
        more slots than there are. Cancelling a future frees the slots of its sequence within one
        step.
        """
        num_beams = max((request.num_beams for request in requests), default=1)
        if num_beams > self._limits.num_slots:
            message = f"num_beams is {num_beams}; at most {self._limits.num_slots} are allowed"
            raise SequenceError("too_many_beams", message)
        now_s = self._now()
        submitted: list[ScheduledSequence] = []
        for request in requests:
            if request.seed is None:  # a second start draws the same tokens
                request = replace(request, seed=randbits(64))
            sequence = start_sequence(request, self._decoder.rules)
            submitted.append(ScheduledSequence(sequence, now_s))
        with self._changed:
            self._queues.submit(requests[0].client if requests else "", submitted)
            self._queue_depth.set(self._queues.num_queued)
            self._changed.notify()
        return [scheduled.future for scheduled in submitted]

    def _run(self) -> None:
        use_decoder_stream(self._decoder.shape.device)
        while True:
            with self._changed:
                while not (self._live or self._retries or self._queues.num_queued):
                    if self._is_stopping:
                        return
                    self._changed.wait()
            self.watchdog.started_s = time.monotonic()
            try:
                self._iterate()
            except Exception as error:  # any exception must reach all callers that it affects
                exit_if_device_lost(error, self._name)
                message = "a decode iteration failed with %d live sequences"
                logger.exception(message, len(self._live))
                self._retry(error)
            self.watchdog.started_s = None
            self._live_sequences.set(len(self._live))
            self._slots_taken.set(len(self._batch.slots.by_slot))

    def _iterate(self) -> None:
        for sequence, scheduled in self._live.items():
            if scheduled.future.cancelled():
                sequence.finish_reason = "stop"
        self._notify_and_finish()
        if groups := self._admitted():
            start_s = self._now()
            for group in groups:
                self._prefill(group)
            self._notify_and_finish()
            admitted = chain.from_iterable(groups)
            clients = {scheduled.sequence.request.client for scheduled in admitted}
            self._queues.note_prefill(clients, self._now() - start_s)
        if self._live:
            start_s = self._now()
            self._batch_size.observe(len(self._batch.slots.by_slot))
            self._batch.step()
            self._notify_and_finish()
            self._queues.steps_s += self._now() - start_s

    def _admitted(self) -> list[list[ScheduledSequence]]:
        """Return the sequences of each prefill; those of a failed batch start alone."""
        if self._retries or any(scheduled.is_retried for scheduled in self._live.values()):
            half = self._retries.popleft() if self._retries and not self._live else []
            return [[scheduled] for scheduled in half if scheduled.admit(self._now())]
        with self._changed:
            if not self._queues.num_queued:
                return []
            taken = self._queues.take(sequence.request for sequence in self._live)
            self._queue_depth.set(self._queues.num_queued)
        by_kind: dict[bool, list[ScheduledSequence]] = {}
        for scheduled in taken:
            is_captured = self._batch.captures(scheduled.sequence.request)
            by_kind.setdefault(is_captured, []).append(scheduled)
        return list(by_kind.values())

    def _retry(self, error: Exception) -> None:
        """Start the sequences of a failed step again, in halves; fail those retried before."""
        self._batch.clear()
        failed = list(self._live.values())
        self._live.clear()
        retried: list[ScheduledSequence] = []
        for scheduled in failed:
            if scheduled.is_retried:
                scheduled.resolve(error)
                continue
            scheduled.is_retried = True
            scheduled.sequence = start_sequence(scheduled.sequence.request, self._decoder.rules)
            retried.append(scheduled)
        middle = (len(retried) + 1) // 2
        self._retries.extend(filter(None, (retried[:middle], retried[middle:])))

    def _prefill(self, admitted: Sequence[ScheduledSequence]) -> None:
        """Prefill sequences together, in halves if memory runs out; a failure fails only these."""
        self.watchdog.started_s = time.monotonic()  # it bounds one prefill and a step
        sequences = [scheduled.sequence for scheduled in admitted]
        try:
            self._batch.admit(sequences)
        except torch.OutOfMemoryError as error:
            self._batch.remove(sequences)  # their slots may have been taken before
            if len(admitted) == 1:  # its frames would keep the activations
                admitted[0].resolve(error.with_traceback(None))
                return
        except Exception as error:  # any exception must reach all callers that it affects
            exit_if_device_lost(error, self._name)
            logger.exception("a prefill of %d sequences failed", len(admitted))
            self._batch.remove(sequences)
            for scheduled in admitted:
                scheduled.resolve(error)
            return
        else:
            for scheduled in admitted:
                scheduled.prefilled_s = self._now()
                self._live[scheduled.sequence] = scheduled
            return
        # Outside the except block, where the exception would keep the activations of the failed
        # try.
        message = "out of memory in a prefill of %d sequences; retrying in two halves"
        logger.warning(message, len(admitted))
        half = len(admitted) // 2
        self._prefill(admitted[:half])
        self._prefill(admitted[half:])

    def _notify_and_finish(self) -> None:
        ended: list[LiveSequence] = []
        for sequence, scheduled in self._live.items():
            if sequence.request.on_tokens is not None:
                scheduled.notify(sequence.request.on_tokens)
            if sequence.has_ended:
                ended.append(sequence)
        if ended:
            self._batch.remove(ended)
        for sequence in ended:
            self._live.pop(sequence).resolve()
