"""Tables in Markdown, and numbers as they are shown."""

import math
from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; every column but the first is aligned to the right."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


def shown(value: float) -> str:
    """Return three significant digits, a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(value: float) -> str:
    """Return `62 %`, and `2.8 %` below ten."""
    return f"{value * 100:.{0 if value >= 0.1 else 1}f} %"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds."""
    return shown(seconds * 1000)
