"""The scheduler of a decoder: continuous batching in one thread.

    while sequences are queued or live:
        remove cancelled sequences
        admit queued ones, as many as have slots and fit the token budget of a prefill
        decode one token of every live sequence
        resolve the futures of those that ended

Clients share the decoder: next is a sequence of the one with the fewest slots, and equal ones
alternate. A prefill delays the live sequences of others. While there are any, its client waits
until steps have taken as long. While clients take turns, each leaves slots to the others, and
prefills are short.

Invariants:
- sequences of a client are admitted in the order of submission: a large one is never overtaken;
- every future is resolved exactly once: by its end, its cancellation, its deadline or the error
  that ended it; no error ends the thread, a lost device ends the process;
- a failed prefill fails its sequences alone; those of a failed step start again, once, in two
  halves: until both have ended, no other is admitted;
- the batch and `_live` belong to the thread; callers share only the queue, under `_changed`.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from secrets import randbits

import torch

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.engines import NewEngine, new_engine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import (
    GeneratedSequence,
    LiveSequence,
    SequenceRequest,
    TokenListener,
)
from runners.errors import SequenceError, exit_if_device_lost
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

_SHARED_S = 10.0  # after a change of clients, they take turns
_SHARED_PREFILL_S = 0.01
# slots of a client while others come; a row of a GPU's step costs little
_SHARED_SLOTS = {"cpu": 0.5, "cuda": 0.75}


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """A generated sequence and its timings."""

    sequence: GeneratedSequence
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class ScheduledSequence:
    """A submitted sequence, from the queue to its result."""

    sequence: LiveSequence
    submitted_s: float
    future: "Future[WrittenSequence]" = field(default_factory=Future)
    admitted_s: float = 0.0
    prefilled_s: float = 0.0
    num_notified: int = 0  # tokens
    half: int = 0  # 1 or 2 if it starts again after a failed step

    def notify(self, on_tokens: TokenListener) -> None:
        settled = self.sequence.settled_token_ids
        if len(settled) > self.num_notified:
            on_tokens(settled[self.num_notified :])
            self.num_notified = len(settled)

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
        # by client; the last is the one whose sequence was admitted last
        self._queues: dict[str, deque[ScheduledSequence]] = {}
        self._num_queued = 0
        self._last_client: str | None = None
        self._shared_until_s = -math.inf
        self._owed_s: dict[str, float] = {}  # time of steps until a client's next prefill
        self._prefill_rate = math.inf  # tokens per second of the last one
        self._changed = threading.Condition()  # guards the queues and `_is_stopping`
        self._is_stopping = False
        self._again: deque[ScheduledSequence] = deque()  # both halves; belongs to the thread
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
        limits = self._limits
        if num_beams > limits.num_slots:
            message = f"num_beams is {num_beams}; at most {limits.num_slots} are allowed"
            raise SequenceError("too_many_beams", message)
        client = requests[0].client if requests else ""
        with self._changed:
            num_of_client = len(self._queues.get(client, ())) + len(requests)
            share = limits.max_waiting // len(self._queues.keys() | {client})
            num_queued = self._num_queued + len(requests)
            is_fair = num_of_client <= share and num_queued <= 2 * limits.max_waiting
            if num_queued > limits.max_waiting and not is_fair:
                queued = f"{self._num_queued} sequences are queued, {len(requests)} were submitted"
                message = f"{queued}, at most {limits.max_waiting} are allowed"
                raise SequenceError("overloaded", message)
            now_s = self._now()
            if self._last_client not in (client, None):
                self._shared_until_s = now_s + _SHARED_S
            self._last_client = client
            futures: list[Future[WrittenSequence]] = []
            for request in requests:
                if request.seed is None:  # a second start draws the same tokens
                    request = replace(request, seed=randbits(64))
                sequence = start_sequence(request, self._decoder.rules)
                scheduled = ScheduledSequence(sequence, now_s)
                self._queues.setdefault(client, deque()).append(scheduled)
                futures.append(scheduled.future)
            self._num_queued = num_queued
            self._queue_depth.set(num_queued)
            self._changed.notify()
        return futures

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._live or self._num_queued or self._again):
                    if self._is_stopping:
                        return
                    self._changed.wait()
            self.watchdog.started_s = time.monotonic()
            try:
                self._iterate()
            except Exception as error:  # any exception must reach all callers that it affects
                exit_if_device_lost(error, self._name)
                logger.exception(
                    "a decode iteration failed with %d live sequences", len(self._live)
                )
                self._batch.clear()
                failed = list(self._live.values())
                self._live.clear()
                for place, scheduled in enumerate(failed):
                    if scheduled.half:
                        scheduled.resolve(error)
                        continue
                    scheduled.half = 1 if 2 * place < len(failed) else 2
                    request = scheduled.sequence.request
                    scheduled.sequence = start_sequence(request, self._decoder.rules)
                    self._again.append(scheduled)
            self.watchdog.started_s = None
            self._live_sequences.set(len(self._live))
            self._slots_taken.set(self._batch.slots.num_used)

    def _iterate(self) -> None:
        for sequence, scheduled in self._live.items():
            if scheduled.future.cancelled():
                sequence.finish_reason = "stop"
        self._notify_and_finish()
        start_s = self._now()
        if admitted := self._take():
            by_kind: dict[bool, list[ScheduledSequence]] = {}
            for scheduled in admitted:
                is_captured = self._batch.captures(scheduled.sequence)
                by_kind.setdefault(is_captured, []).append(scheduled)
            for group in by_kind.values():
                self._prefill(group)
            self._notify_and_finish()
            prefill_s = self._now() - start_s
            num_tokens = 0
            for scheduled in admitted:
                num_tokens += scheduled.sequence.request.num_prefix_tokens
                self._owed_s[scheduled.sequence.request.client] = prefill_s
            self._prefill_rate = num_tokens / max(prefill_s, 1e-6)
        if self._live:
            start_s = self._now()
            self._batch_size.observe(self._batch.slots.num_used)
            self._batch.step()
            self._notify_and_finish()
            step_s = self._now() - start_s
            for client, owed_s in list(self._owed_s.items()):
                self._owed_s[client] = owed_s - step_s
                if owed_s <= step_s:
                    del self._owed_s[client]

    def _take(self) -> list[ScheduledSequence]:
        """Dequeue sequences to admit; those that start again one by one, and each half apart."""
        half = next((scheduled.half for scheduled in self._live.values()), 0)
        if not (half or self._again):
            return self._take_from_queue()
        is_next = self._again and half in (0, self._again[0].half)
        return [self._again.popleft()] if is_next else []

    def _take_from_queue(self) -> list[ScheduledSequence]:
        """Dequeue sequences that have slots and fit the token budget, or one that exceeds it."""
        now_s = self._now()
        max_tokens: float = self._limits.max_prefill_tokens
        max_slots = self._limits.num_slots
        if now_s < self._shared_until_s:
            max_tokens = min(max_tokens, self._prefill_rate * _SHARED_PREFILL_S)
            max_slots = round(max_slots * _SHARED_SLOTS[self._decoder.shape.device.type])
        slots: Counter[str] = Counter()
        for sequence in self._live:
            slots[sequence.request.client] += sequence.request.num_beams
        taken: list[ScheduledSequence] = []
        longest = 0
        with self._changed:
            while (client := self._next_client(slots, max_slots)) is not None:
                request = self._queues[client][0].sequence.request
                longest = max(longest, request.num_prefix_tokens)
                if slots.total() + request.num_beams > self._limits.num_slots:
                    break
                if taken and longest * (len(taken) + 1) > max_tokens:
                    break
                queue = self._queues.pop(client)
                scheduled = queue.popleft()
                if queue:
                    self._queues[client] = queue  # behind the others
                self._num_queued -= 1
                if scheduled.future.cancelled() or now_s > request.deadline_s:
                    message = "the deadline passed before the sequence was admitted"
                    scheduled.resolve(SequenceError("deadline_exceeded", message))
                    continue
                scheduled.admitted_s = now_s
                taken.append(scheduled)
                slots[client] += request.num_beams
            self._queue_depth.set(self._num_queued)
        return taken

    def _next_client(self, slots: Counter[str], max_slots: int) -> str | None:
        """Return whose sequence is next; `slots`: of each client, `max_slots` of one."""
        clients: list[str] = []
        for client, queue in self._queues.items():
            num_slots = slots[client] + queue[0].sequence.request.num_beams
            is_in_turn = client not in self._owed_s or slots[client] == slots.total()
            if is_in_turn and (num_slots <= max_slots or not slots[client]):
                clients.append(client)
        return min(clients, key=slots.__getitem__, default=None)

    def _prefill(self, admitted: Sequence[ScheduledSequence]) -> None:
        """Prefill sequences together, in halves if memory runs out; a failure fails only these."""
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
        logger.warning(
            "out of memory in a prefill of %d sequences; retrying in two halves", len(admitted)
        )
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
