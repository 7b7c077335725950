"""A running batch: its answers are written while there is room, then its files are made.

All calls block.
"""

import itertools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from service.batches.journal import Journal
from service.batches.lines import InputFile, OutputError, OutputLine, RenderedLine
from service.batches.store import MAX_BYTES_PER_KEY, BatchState, KeyFolder
from service.batches.wire import BatchError, BatchErrors

_EXPIRED_AT_A_TIME = 1000
_NO_ROOM = BatchError(
    code="storage_limit_exceeded",
    line=None,
    message=(
        f"The files of this API key reached {MAX_BYTES_PER_KEY} bytes: delete some, and send the"
        " rest again."
    ),
)


class NoRoom(Exception):
    """The key's files have no room for a line."""


@dataclass(frozen=True, slots=True)
class Job:
    """A batch whose requests are run."""

    folder: KeyFolder
    state: BatchState
    source: InputFile
    journal: Journal

    @classmethod
    def open(cls, folder: KeyFolder, state: BatchState, max_line_bytes: int) -> "Job":
        """Open the files of a batch; raise `OSError`."""
        source = InputFile(folder.content(state.batch.input_file_id), max_line_bytes)
        journal = Journal.open(folder.content(state.output_id), folder.content(state.error_id))
        job = cls(folder, state, source, journal)
        job._count()
        return job

    def is_to_end(self) -> bool:
        """Return True if the batch was cancelled or has expired."""
        return time.time() >= self.state.batch.expires_at or self.folder.is_cancelling(
            self.state.batch.id
        )

    def save(self, lines: Sequence[RenderedLine]) -> None:
        """Write answers and their number.

        Raise `OSError`, or `NoRoom` when those are written that have room.
        """
        if lines:
            self._append(lines)
            self._count()
            self.folder.save(self.state)

    def finish(self, *, is_full: bool = False) -> None:
        """Make the files and end the batch; repeated as a whole after a crash."""
        batch = self.state.batch
        batch.cancelling_at = self.folder.state(batch.id).batch.cancelling_at
        now_s = int(time.time())
        if not (is_full or batch.cancelling_at or self._is_whole):
            batch.expired_at = batch.expired_at or now_s
        batch.finalizing_at = batch.finalizing_at or now_s
        batch.status = "finalizing"
        self.folder.save(self.state)
        if batch.expired_at is not None and not is_full:
            is_full = not self._append_expired()
        self._count()
        kept_s = self.state.output_kept_s
        if self.journal.num_answered:
            self.folder.add_file(
                self.state.output_id, f"{batch.id}_output.jsonl", "batch_output", kept_s
            )
            batch.output_file_id = self.state.output_id
        if self.journal.num_failed:
            self.folder.add_file(
                self.state.error_id, f"{batch.id}_error.jsonl", "batch_output", kept_s
            )
            batch.error_file_id = self.state.error_id
        self._end(is_full)
        self.folder.save(self.state)

    @property
    def _is_whole(self) -> bool:
        return self.state.batch.request_counts.num_waiting <= 0

    def _end(self, is_full: bool) -> None:
        """Set the status of the end and its time."""
        batch = self.state.batch
        now_s = int(time.time())
        if is_full:
            batch.status = "failed"
            batch.failed_at = now_s
            batch.expired_at = None
            batch.errors = BatchErrors(data=[_NO_ROOM])
        elif batch.expired_at is not None:
            batch.status = "expired"
        elif batch.cancelling_at is not None and not self._is_whole:
            batch.status = "cancelled"
            batch.cancelled_at = now_s
        else:
            batch.status = "completed"
            batch.completed_at = now_s
            batch.cancelling_at = None

    def _append_expired(self) -> bool:
        """Append an error for each request not run; return False without room for all."""
        done = Journal.open(self.journal.output, self.journal.errors).recovered
        lines = (
            OutputLine(
                id=f"batch_req_{uuid.uuid4().hex}",
                custom_id=each,
                response=None,
                error=OutputError(),
            ).rendered()
            for each in self.source.unanswered_ids(done)
        )
        try:
            while piece := list(itertools.islice(lines, _EXPIRED_AT_A_TIME)):
                self._append(piece)
        except NoRoom:
            return False
        return True

    def _append(self, lines: Sequence[RenderedLine]) -> None:
        """Append the first lines for which there is room; raise `NoRoom` if that is not all."""
        room = self.folder.num_free_bytes()
        ends = itertools.accumulate(len(line.data) for line in lines)
        fitting = [line for line, end in zip(lines, ends, strict=True) if end <= room]
        self.journal.append(fitting)
        if len(fitting) < len(lines):
            raise NoRoom

    def _count(self) -> None:
        counts = self.state.batch.request_counts
        counts.completed = self.journal.num_answered
        counts.failed = self.journal.num_failed
