"""Merges streams of several sequences into one text; replays a stream without repeating text."""

from collections.abc import Callable

from wire.runner_messages import Outcome, SequenceEnd, TextPiece, Written

OnText = Callable[[str], None]


class ReplayDiverged(Exception):
    """The repeated stream differs from the text already sent."""


class StreamReplay:
    """Sends the text of the first sequence as it arrives, then that of the next.

    The complete text is that of all sequences, one line each, joined by newlines.
    """

    def __init__(self, num_sequences: int, send: OnText) -> None:
        self._num_sequences = num_sequences
        self._send_text = send
        self._sent = ""
        self.begin()

    def begin(self) -> None:
        """Start a stream, the first or a repeated one; text already sent is only compared."""
        self._texts = [""] * self._num_sequences
        self._outcomes: list[Outcome | None] = [None] * self._num_sequences
        self._current = 0  # index of the sequence that is being sent
        # characters of its text that were sent, in this stream or an earlier one
        self._num_consumed = 0
        self._num_replayed = 0  # characters of this stream, of all sequences

    def receive(self, event: TextPiece | SequenceEnd) -> None:
        """Take an event and send the text that is next; raise `ReplayDiverged`."""
        if isinstance(event, TextPiece):
            self._texts[event.index] += event.text
        else:
            self._outcomes[event.index] = event.outcome
            if isinstance(event.outcome, Written):
                self._texts[event.index] = event.outcome.text
        self._send(self._texts[self._current][self._num_consumed :])
        self._num_consumed = len(self._texts[self._current])
        while self._outcomes[self._current] is not None and self._current < len(self._texts) - 1:
            self._current += 1
            self._num_consumed = len(self._texts[self._current])
            self._send("\n")
            self._send(self._texts[self._current])
        is_over = self._current == self._num_sequences - 1 and isinstance(
            self._outcomes[-1], Written
        )
        if is_over and self._num_replayed < len(self._sent):
            raise ReplayDiverged

    @property
    def outcomes(self) -> list[Outcome]:
        """Outcomes of the sequences that have ended, in order."""
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _send(self, text: str) -> None:
        """Send the part of `text` that was not sent before."""
        sent_before = self._sent[self._num_replayed : self._num_replayed + len(text)]
        if not text.startswith(sent_before):
            raise ReplayDiverged
        self._num_replayed += len(text)
        if new := text[len(sent_before) :]:
            self._sent += new
            self._send_text(new)
