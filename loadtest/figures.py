"""Figures of reports: percentiles, rounding, tables in Markdown, and the machine that they were
measured on.
"""

import math
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile of the values, or NaN without values."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; every column but the first is right-aligned."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


def shown(value: float) -> str:
    """Return three significant digits; a dash for NaN."""
    if math.isnan(value):
        return "-"
    if value == 0:
        return "0"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def processor_name() -> str:
    """Return the model name of the processor, or its architecture if Linux gives no name."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
