"""The scheduler of a decoder: continuous batching in one thread.

    while sequences are queued or live:
        remove cancelled sequences
        admit queued ones, as many as have slots and fit the token budget of a prefill
        decode one token of every live sequence
        resolve the futures of those that ended

Invariants:
- every future is resolved exactly once: by its end, its cancellation, its deadline or the error
  that ended it; no error ends the thread, a lost device ends the process;
- a failed prefill fails its sequences alone; those of a failed step start again, once, in two
  halves: until both have ended, no other is admitted;
- a listener receives each token once, also of a sequence that starts again;
- the batch and `_live` belong to the thread; callers share only the queues, under `_changed`
  (runners/decoder/client_queues.py has their order).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from secrets import randbits

import torch

from runners.decoder.batch import LiveBatch, start_sequence
from runners.decoder.client_queues import ClientQueues, ScheduledSequence
from runners.decoder.engines import NewEngine, new_engine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import LiveSequence, SequenceRequest, WrittenSequence
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
        while self._wait_for_sequences():
            self.watchdog.started_s = time.monotonic()
            try:
                self._iterate()
            except Exception as error:  # any exception must reach all callers that it affects
                exit_if_device_lost(error, self._name)
                logger.exception(
                    "a decode iteration failed with %d live sequences", len(self._live)
                )
                self._retry(error)
            self.watchdog.started_s = None
            self._live_sequences.set(len(self._live))
            self._slots_taken.set(self._batch.slots.num_used)

    def _wait_for_sequences(self) -> bool:
        """Return False once the scheduler stops and has none left."""
        with self._changed:
            while not (self._live or self._retries or self._queues.num_queued):
                if self._is_stopping:
                    return False
                self._changed.wait()
        return True

    def _iterate(self) -> None:
        for sequence, scheduled in self._live.items():
            if scheduled.future.cancelled():
                sequence.finish_reason = "stop"
        self._notify_and_finish()
        if admitted := self._admitted():
            start_s = self._now()
            for group in self._groups(admitted):
                self._prefill(group)
            self._notify_and_finish()
            clients = {scheduled.request.client for scheduled in admitted}
            self._queues.note_prefill(clients, self._now() - start_s)
        if self._live:
            start_s = self._now()
            self._batch_size.observe(self._batch.slots.num_used)
            self._batch.step()
            self._notify_and_finish()
            self._queues.note_step(self._now() - start_s)

    def _admitted(self) -> list[ScheduledSequence]:
        """Return a half of a failed batch if none is live, or else dequeued sequences."""
        if self._retries or any(scheduled.is_retried for scheduled in self._live.values()):
            half = self._retries.popleft() if self._retries and not self._live else []
            return [scheduled for scheduled in half if scheduled.admit(self._now())]
        with self._changed:
            if not self._queues.num_queued:
                return []
            taken = self._queues.take(sequence.request for sequence in self._live)
            self._queue_depth.set(self._queues.num_queued)
            return taken

    def _groups(self, admitted: Sequence[ScheduledSequence]) -> list[list[ScheduledSequence]]:
        """Return the sequences of each prefill: captured and others, retried ones alone."""
        if admitted[0].is_retried:
            return [[scheduled] for scheduled in admitted]
        by_kind: dict[bool, list[ScheduledSequence]] = {}
        for scheduled in admitted:
            is_captured = self._batch.captures(scheduled.sequence)
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
            scheduled.sequence = start_sequence(scheduled.request, self._decoder.rules)
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
