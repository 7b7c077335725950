"""Tables in Markdown, and the machine of their figures."""

import platform
from collections.abc import Iterable, Sequence
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; every column but the first is right-aligned."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]])


def processor_name() -> str:
    """Return the model name of the processor, or its architecture if Linux gives no name."""
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
