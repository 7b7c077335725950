"""Input that was left out or changed: a line for each, with place, finding and what was done."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from diptych_client.long_runs import RunError

# A value of another form than its format's: a missing key, a list where a number is due, 1e999 …
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)
_MAX_LINES = 10_000  # kept; all are counted
_MAX_CHARS = 500


@dataclass(slots=True)
class Problems:
    """The problems of a run; the first one ends a strict run."""

    is_strict: bool = False
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # keyed by what was done

    def add(self, place: object, found: object, done: str) -> None:
        """Add a line; raise `RunError` with it if the run is strict."""
        line = " ".join(f"{place}: {found}".split())[:_MAX_CHARS]
        if self.is_strict:
            raise RunError(line)
        self.counts[done] += 1
        line = f"{line}; {done}"
        if len(self.lines) < _MAX_LINES:
            self.lines.append(line)

    @contextmanager
    def leaving_out(self, kind: str, *place: object) -> Iterator[None]:
        """Add malformed input as a problem: the object of this kind is left out."""
        try:
            yield
        except MALFORMED as error:
            found = error.args[0] if isinstance(error, KeyError) and error.args else error
            missing = "no key " if isinstance(error, KeyError) else ""
            self.add(", ".join(map(str, place)), f"{missing}{found}", f"{kind} left out")

    def summary(self) -> str:
        """Return how often each thing was done."""
        return ", ".join(f"{count} x {done}" for done, count in sorted(self.counts.items()))
