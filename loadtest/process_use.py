"""What the processes of a service take, as the kernel counts it (man proc).

memory   proportional set size: pages that several processes share are divided among them
shared   memory without a name in any folder (memfd): how many a process holds, and bytes in them; what several hold
         counts for the first of them, its owner
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_BLOCK_BYTES = 512  # what st_blocks counts in
_KB = 1024


@dataclass(frozen=True, slots=True)
class Use:
    """Of one process at one time."""

    memory_mb: float
    num_fds: int
    num_threads: int
    num_shared: int
    shared_mb: float


def use_of_family(process_id: int) -> dict[str, Use]:
    """Return the use of a process and of all that come from it, by name; those that end meanwhile are left out."""
    found, counted = {}, set[int]()
    for one in _family(process_id):
        with suppress(FileNotFoundError, ProcessLookupError):
            found[_name(one)] = _use(one, counted)
    return found


def _family(process_id: int) -> Iterator[int]:
    yield process_id
    with suppress(FileNotFoundError, ProcessLookupError):
        for child in Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="utf-8").split():
            yield from _family(int(child))


def _name(process_id: int) -> str:
    words = Path(f"/proc/{process_id}/cmdline").read_text(encoding="utf-8").replace("\0", " ").split()
    return words[words.index("--service-name") + 1] if "--service-name" in words else "supervisor"


def _use(process_id: int, counted: set[int]) -> Use:
    folder = Path(f"/proc/{process_id}")
    memory = (folder / "smaps_rollup").read_text(encoding="utf-8").partition("\nPss:")[2].split()[0]
    shared = {inode: num_bytes for inode, num_bytes in _memfds(folder / "fd") if inode not in counted}
    counted |= shared.keys()
    return Use(
        memory_mb=int(memory) * _KB / 1e6,
        num_fds=len(list((folder / "fd").iterdir())),
        num_threads=len(list((folder / "task").iterdir())),
        num_shared=len(shared),
        shared_mb=sum(shared.values()) / 1e6,
    )


def _memfds(fds: Path) -> Iterator[tuple[int, int]]:
    """Yield inode and bytes of each memory; one that is held twice comes twice."""
    for fd in fds.iterdir():
        with suppress(FileNotFoundError):
            if str(fd.readlink()).startswith("/memfd:"):
                status = fd.stat()
                yield status.st_ino, status.st_blocks * _BLOCK_BYTES
