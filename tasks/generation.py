"""The generated text of one prompt, with a log-probability for every token.

Its grammar is not known here.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Span = tuple[int, int]  # start and end offset in the text


@dataclass(frozen=True, slots=True)
class GeneratedText:
    """A decoder's answer without bos, eos and padding, with location and other control tokens."""

    text: str
    token_ends: tuple[int, ...]  # offset in `text` after each token, non-decreasing
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]

    def __post_init__(self) -> None:
        if len(self.token_ends) != len(self.logprobs):
            raise ValueError(
                f"{len(self.token_ends)} token ends for {len(self.logprobs)} log-probabilities"
            )

    def is_read_as(self, found: Sequence[object]) -> bool:
        """Return True if something was found, or the text is blank."""
        return bool(found) or not self.text.strip()

    def score(self, label: Sequence[Span], locations: Sequence[Span]) -> float:
        """Return the label's probability times the geometric mean of the locations', 0 to 1.

        A label of several tokens is as likely as all of them; a box has the mean of its locations,
        so that scores of boxes and of outlines, which have more of them, can be compared.
        """
        of_label = self._logprobs_in(label)
        of_locations = self._logprobs_in(locations)
        mean = math.fsum(of_locations) / max(1, len(of_locations))
        return min(1.0, math.exp(math.fsum(of_label) + mean))

    def _logprobs_in(self, spans: Sequence[Span]) -> list[float]:
        """Return the log-probabilities of the tokens that overlap any of `spans`.

        A token that completes no character (a byte of a longer one) has no width; it belongs to the
        token after it.
        """
        starts = (0, *self.token_ends)
        indices = set[int]()
        for start, end in spans:
            first = bisect_right(self.token_ends, start)
            while first > 0 and starts[first - 1] == starts[first] == start:
                first -= 1
            last = bisect_left(starts, end, first, len(self.token_ends))
            indices.update(range(first, last))
        return [self.logprobs[index] for index in indices]
