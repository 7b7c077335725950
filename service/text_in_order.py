"""The text of several sequences that are written at the same time, told as one."""

from collections.abc import Callable

from runners.messages import Outcome, TextPiece, WritingEvent, Written

TextListener = Callable[[str], None]


class TextInOrder:
    """Tells the text of the first sequence as it comes, then that of the next: one line for each.

    What is told is, when all have ended, their texts joined by newlines.
    """

    def __init__(self, num_sequences: int, tell: TextListener) -> None:
        self._tell = tell
        self._texts = [""] * num_sequences
        self._outcomes: list[Outcome | None] = [None] * num_sequences
        self._current = 0
        self._num_told = 0  # characters of the current one
        self.has_told = False

    def hear(self, event: WritingEvent) -> None:
        """Take a piece or an end, and tell what is next."""
        if isinstance(event, TextPiece):
            self._texts[event.index] += event.text
        else:
            self._outcomes[event.index] = event.outcome
            if isinstance(event.outcome, Written):
                self._texts[event.index] = event.outcome.text
        self._tell_next()

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of those that have ended, in order."""
        return [outcome for outcome in self._outcomes if outcome is not None]

    def _tell_next(self) -> None:
        while True:
            self._tell_text(self._texts[self._current][self._num_told :])
            self._num_told = len(self._texts[self._current])
            if self._outcomes[self._current] is None or self._current == len(self._texts) - 1:
                return
            self._tell_text("\n")
            self._current, self._num_told = self._current + 1, 0

    def _tell_text(self, text: str) -> None:
        if text:
            self.has_told = True
            self._tell(text)
