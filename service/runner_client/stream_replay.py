"""The text of several sequences that are written at the same time, told as one."""

from collections.abc import Callable

from runners.transport.messages import Outcome, SequenceEnd, TextPiece, Written

TextListener = Callable[[str], None]


class ToldOtherwise(Exception):
    """What is written again is not what was told."""


class TextInOrder:
    """Tells the text of the first sequence as it comes, then that of the next: one line for each.

    What is told is, when all have ended, their texts joined by newlines.
    """

    def __init__(self, num_sequences: int, tell: TextListener) -> None:
        self._num_sequences = num_sequences
        self._tell = tell
        self._told = ""
        self.begin()

    def begin(self) -> None:
        """Hear all from the beginning, perhaps once more: what was told is not told again, but compared."""
        self._texts = [""] * self._num_sequences
        self._outcomes: list[Outcome | None] = [None] * self._num_sequences
        self._current = 0
        self._num_heard = 0  # characters of the current one that were told, now or before
        self._num_repeated = 0  # characters of all that were

    def hear(self, event: TextPiece | SequenceEnd) -> None:
        """Take a piece or an end, and tell what is next; raise `ToldOtherwise`."""
        if isinstance(event, TextPiece):
            self._texts[event.index] += event.text
        else:
            self._outcomes[event.index] = event.outcome
            if isinstance(event.outcome, Written):
                self._texts[event.index] = event.outcome.text
        self._tell_next()
        is_over = self._current == self._num_sequences - 1 and isinstance(self._outcomes[-1], Written)
        if is_over and self._num_repeated < len(self._told):
            raise ToldOtherwise

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of those that have ended, in order."""
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _tell_next(self) -> None:
        while True:
            self._tell_text(self._texts[self._current][self._num_heard :])
            self._num_heard = len(self._texts[self._current])
            if self._outcomes[self._current] is None or self._current == len(self._texts) - 1:
                return
            self._tell_text("\n")
            self._current, self._num_heard = self._current + 1, 0

    def _tell_text(self, text: str) -> None:
        before = self._told[self._num_repeated : self._num_repeated + len(text)]
        if not text.startswith(before):
            raise ToldOtherwise
        self._num_repeated += len(text)
        if new := text[len(before) :]:
            self._told += new
            self._tell(new)
