"""The decoder's thread: sequences of many requests in one batch, entering and leaving between decode steps.

    while there is work:
        cancelled and expired ones leave
        waiting ones are admitted: as many as have a slot and fit the token budget of a prefill
        every live sequence gets a token
        those that ended answer

It knows sequences, futures and the batch of `runners.decoder.batch`; nothing of a family, of HTTP or of tasks.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from runners.decoder.batch import Decoder, LiveBatch, start_sequence
from runners.decoder.errors import DeadlineExceeded, Overloaded, TooManyBeams
from runners.decoder.sequences import GeneratedSequence, LiveSequence, SequenceRequest
from runners.options import SchedulerLimits
from runners.telemetry.metrics import BATCH_SIZE, LIVE_SEQUENCES, QUEUE_DEPTH, SLOTS, SLOTS_TAKEN
from runners.telemetry.watchdog import Watchdog

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WrittenSequence:
    """A sequence that was written and where its time went."""

    sequence: GeneratedSequence
    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(slots=True)
class _Ticket:
    """A sequence on its way, from the queue to its answer."""

    sequence: LiveSequence
    since_s: float
    future: "Future[WrittenSequence]" = field(default_factory=Future)
    admitted_s: float = 0.0
    prefilled_s: float = 0.0
    num_told: int = 0  # tokens

    @property
    def num_read(self) -> int:
        """Tokens of image and prompt."""
        return len(self.sequence.request.image_features) + len(self.sequence.request.prompt_ids)

    def tell(self) -> None:
        """Tell the tokens that are settled now to whoever hears them as they come."""
        if (hear := self.sequence.request.on_tokens) is None:
            return
        settled = self.sequence.settled_token_ids
        if len(settled) > self.num_told:
            hear(settled[self.num_told :])
            self.num_told = len(settled)


class Scheduler:
    """Writes what is submitted, with at most `limits.num_slots` sequences live."""

    def __init__(self, decoder: Decoder[Any], model_id: str, limits: SchedulerLimits) -> None:
        self._decoder = decoder
        self._limits = limits
        self._batch = LiveBatch(decoder, limits.num_slots)
        self._tickets: dict[LiveSequence, _Ticket] = {}  # of the live sequences
        self._waiting: deque[_Ticket] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self.watchdog = Watchdog(f"the decoder of {model_id}", limits.stuck_after_s)
        self._thread = threading.Thread(target=self._run, name=f"decoder {model_id}", daemon=True)
        self._batch_size = BATCH_SIZE.labels(model_id, "decode")
        self._queue_depth = QUEUE_DEPTH.labels(model_id, "decode")
        self._live_sequences = LIVE_SEQUENCES.labels(model_id)
        self._slots = SLOTS.labels(model_id)
        self._slots_taken = SLOTS_TAKEN.labels(model_id)

    def start(self) -> None:
        """Start the thread."""
        self._slots.set(self._limits.num_slots)
        self._thread.start()

    def stop(self) -> None:
        """Write what was accepted, then end the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, requests: Sequence[SequenceRequest]) -> "list[Future[WrittenSequence]]":
        """Accept all `requests`, or none: raise `Overloaded` if they would wait beyond `max_waiting`.

        Raise `TooManyBeams` where one can never have the slots that it needs. A future that is cancelled frees the
        slots of its sequence within one step.
        """
        num_beams = max((request.num_beams for request in requests), default=1)
        if num_beams > self._limits.num_slots:
            raise TooManyBeams(f"num_beams is {num_beams}; this decoder has {self._limits.num_slots} slots")
        with self._changed:
            limit = self._limits.max_waiting
            if len(self._waiting) + len(requests) > limit:
                raise Overloaded(f"{len(self._waiting)} sequences wait already, at most {limit} may")
            now_s = time.monotonic()
            tickets = [_Ticket(start_sequence(request, self._decoder.rules), now_s) for request in requests]
            self._waiting.extend(tickets)
            self._queue_depth.set(len(self._waiting))
            self._changed.notify()
        return [ticket.future for ticket in tickets]

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                with self.watchdog.turn():
                    self._drop_unwanted()
                    self._admit()
                    self._step()
            except Exception as error:  # whatever was raised must reach everyone who waits for it
                logger.exception("a turn with %d live sequences failed", len(self._tickets))
                self._fail_live(error)
            self._live_sequences.set(len(self._tickets))
            self._slots_taken.set(self._batch.num_taken)

    def _wait_for_work(self) -> bool:
        """Return True once something is live or waits, False when the thread shall end."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets or self._waiting or self._is_stopping)
            return bool(self._tickets or self._waiting)

    def _drop_unwanted(self) -> None:
        """End the live sequences that nobody waits for any more."""
        for sequence, ticket in self._tickets.items():
            if ticket.future.cancelled():
                sequence.finish_reason = "stop"
        self._settle()

    def _admit(self) -> None:
        """Prefill the next waiting sequences into free slots."""
        tickets = self._next_tickets()
        for ticket in tickets:
            ticket.admitted_s = time.monotonic()
        if tickets:
            self._prefill(tickets)
            self._settle()

    def _prefill(self, tickets: Sequence[_Ticket]) -> None:
        """Prefill sequences together, in two halves where memory is short; a failure reaches those that it hits."""
        sequences = [ticket.sequence for ticket in tickets]
        try:
            self._batch.admit(sequences)
        except torch.OutOfMemoryError as error:
            self._batch.drop(sequences)  # it may have come after their slots were taken
            if len(tickets) == 1:
                _fail(tickets, error.with_traceback(None))  # whose frames would keep the activations
                return
        except Exception as error:  # whatever the model raised must reach everyone who waits for it
            logger.exception("a prefill of %d sequences failed", len(tickets))
            self._batch.drop(sequences)
            _fail(tickets, error)
            return
        else:
            for ticket in tickets:
                ticket.prefilled_s = time.monotonic()
                self._tickets[ticket.sequence] = ticket
            return
        # Not within the except block, where the exception would keep the activations of the failed try.
        logger.warning("no memory to prefill %d sequences together: halved", len(tickets))
        half = len(tickets) // 2
        self._prefill(tickets[:half])
        self._prefill(tickets[half:])

    def _next_tickets(self) -> list[_Ticket]:
        """Take from the queue, in order, what has slots and fits the token budget; of the latter at least one."""
        tickets: list[_Ticket] = []
        longest, num_free = 0, self._batch.num_free
        with self._changed:
            while self._waiting and self._waiting[0].sequence.num_rows <= num_free:
                longest = max(longest, self._waiting[0].num_read)
                if tickets and longest * (len(tickets) + 1) > self._limits.max_prefill_tokens:
                    break
                ticket = self._waiting.popleft()
                if _is_still_wanted(ticket):
                    tickets.append(ticket)
                    num_free -= ticket.sequence.num_rows
            self._queue_depth.set(len(self._waiting))
        return tickets

    def _step(self) -> None:
        """Give every live sequence a token."""
        if self._tickets:
            self._batch_size.observe(self._batch.num_taken)
            self._batch.step()
            self._settle()

    def _fail_live(self, error: Exception) -> None:
        """Free all slots and tell everyone whose they were."""
        self._batch.clear()
        tickets = list(self._tickets.values())
        self._tickets.clear()
        _fail(tickets, error)

    def _settle(self) -> None:
        """Tell new tokens, free the slots of those that ended, and answer."""
        for ticket in self._tickets.values():
            ticket.tell()
        for sequence in self._batch.leave():
            ticket = self._tickets.pop(sequence)
            _end(ticket, sequence.error or _written(ticket))


def _is_still_wanted(ticket: _Ticket) -> bool:
    """Say whether a waiting sequence shall be written; tell one whose time ran out."""
    if ticket.future.cancelled():
        ticket.future.set_running_or_notify_cancel()
        return False
    if time.monotonic() > ticket.sequence.request.deadline_s:
        _end(ticket, DeadlineExceeded("the time ran out before it was written"))
        return False
    return True


def _written(ticket: _Ticket) -> WrittenSequence:
    return WrittenSequence(
        ticket.sequence.result(),
        queue_s=ticket.admitted_s - ticket.since_s,
        prefill_s=ticket.prefilled_s - ticket.admitted_s,
        decode_s=time.monotonic() - ticket.prefilled_s,
    )


def _fail(tickets: Sequence[_Ticket], error: Exception) -> None:
    for ticket in tickets:
        _end(ticket, error)


def _end(ticket: _Ticket, outcome: WrittenSequence | Exception) -> None:
    """Answer, unless the future was cancelled: then whoever waits for it is told."""
    if not ticket.future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        ticket.future.set_exception(outcome)
    else:
        ticket.future.set_result(outcome)
