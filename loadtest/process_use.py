"""Memory, descriptors and threads of the processes of a service, as the kernel counts them (man proc).

memory   proportional set size: pages that several processes share are divided among them
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_KB = 1024


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process at one time."""

    memory_mb: float
    num_fds: int
    num_threads: int


def use_of_family(process_id: int) -> dict[str, Use]:
    """Return the use of a process and of all that come from it, by name; those that end meanwhile are left out."""
    found = {}
    for one in _family(process_id):
        with suppress(FileNotFoundError, ProcessLookupError):
            found[_name(one)] = _use(one)
    return found


def _family(process_id: int) -> Iterator[int]:
    yield process_id
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="utf-8").split():
            yield from _family(int(child))


def _name(process_id: int) -> str:
    words = Path(f"/proc/{process_id}/cmdline").read_text(encoding="utf-8").replace("\0", " ").split()
    return words[words.index("--service-name") + 1] if "--service-name" in words else "supervisor"


def _use(process_id: int) -> Use:
    folder = Path(f"/proc/{process_id}")
    memory = (folder / "smaps_rollup").read_text(encoding="utf-8").partition("\nPss:")[2].split()[0]
    return Use(
        memory_mb=int(memory) * _KB / 1e6,
        num_fds=len(list((folder / "fd").iterdir())),
        num_threads=len(list((folder / "task").iterdir())),
    )
