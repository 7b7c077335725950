"""Features of Linux that the service requires, and the environment of its libraries.

Knows no settings.
"""

import ctypes
import os
import signal
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_RETURN_EVERY_S = 3.0
# modules, libraries, certificates of authorities, and how names are resolved
_LIBRARY_VARIABLES = (
    *("LD_LIBRARY_PATH", "PATH", "PYTHONHOME", "PYTHONPATH"),
    *("SSL_CERT_DIR", "SSL_CERT_FILE", "LOCALDOMAIN", "RES_OPTIONS"),
)
# arg_start and arg_end in /proc/PID/stat, after the name (man proc_pid_stat)
_ARGUMENTS = slice(45, 47)

# mount and file of the limit, by the controllers of a line of /proc/PID/cgroup: version 1, 2
_MEMORY_LIMITS = {
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    "": ("sys/fs/cgroup", "memory.max"),
}


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of all processes: `environment` and defaults for libraries."""
    return {
        "OPENBLAS_NUM_THREADS": "1",  # numpy decodes small masks, beside the runners' threads
        "OMP_WAIT_POLICY": "PASSIVE",  # waiting threads yield their core to the encoder's
        "MALLOC_ARENA_MAX": "2",  # glibc keeps a heap for each thread that ever allocated
        # Caches of torch's products on a CPU, of 1,024 by default: 270 kB for each number of rows
        # of a matrix. With 128 of oneDNN's, a mixed load takes a tenth more CPU time.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256",
        "LRU_CACHE_CAPACITY": "32",  # ideep's, in front of oneDNN's
        # numpy would allocate pages of 2 MB for keys and values, of which most are never written
        "NUMPY_MADVISE_HUGEPAGE": "0",
        "RES_OPTIONS": "timeout:2 attempts:2",  # a name's servers block for 4 s, not for 10 or more
        # telemetry off, of models and machines to the vendor, and of services
        "ORT_DISABLE_TELEMETRY": "1",
        "BENTOML_DO_NOT_TRACK": "True",
        **environment,
    }


def library_environment() -> dict[str, str]:
    """Return the environment of a helper process: where libraries and modules are, no secrets."""
    environment = {name: os.environ[name] for name in _LIBRARY_VARIABLES if name in os.environ}
    return process_environment(environment)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def memory_limit_bytes(root: Path = Path("/")) -> int:
    """Return the memory of this process's control group, at most that of the machine."""
    limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers not in _MEMORY_LIMITS:
            continue
        mount, file = _MEMORY_LIMITS[controllers]
        for folder in (root / mount / group.lstrip("/"), root / mount):  # a container's is the root
            with suppress(OSError, ValueError):  # no such file; "max"
                limit = min(limit, int((folder / file).read_text()))
    return limit


def anonymous_file(name: str) -> int:
    """Open a file in no folder, which is freed with its last user; return its descriptor."""
    return os.memfd_create(name, os.MFD_CLOEXEC)


def path_of(fd: int) -> str:
    """Return a path that opens an open file itself, whatever its name is by now."""
    return f"/dev/fd/{fd}"


def open_anonymous(pid: int, fd: int, name: str) -> int:
    """Open the anonymous file of another process; raise `OSError` if it has another name."""
    path = f"/proc/{pid}/fd/{fd}"
    if os.readlink(path) != f"/memfd:{name} (deleted)":
        raise OSError(f"{path} is not the memory {name}")
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def memory_folder() -> Path:
    """Return a folder in memory, or the temporary folder."""
    memory = Path("/dev/shm")
    if os.access(memory, os.W_OK):
        return memory
    return Path(tempfile.gettempdir())


def end_with(parent: int) -> None:
    """End this process, a child of `parent`, when `parent` ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def return_freed_memory() -> None:
    """Return memory that was freed, as after loading weights, to the system, where glibc can."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def return_freed_memory_regularly() -> None:
    """Do so in a thread while this process runs: glibc alone returns only the end of a heap.

    A call takes 0.3 ms, and up to 10 ms when large bodies were freed.
    """

    def run() -> None:
        while True:
            return_freed_memory()
            time.sleep(_RETURN_EVERY_S)

    threading.Thread(target=run, name="memory", daemon=True).start()


def show_as(title: str) -> None:
    """Overwrite the command line that `ps` shows, cut to the length it had."""
    with open("/proc/self/stat", encoding="utf-8") as stat, open("/proc/self/mem", "r+b") as memory:
        start, end = map(int, stat.read().rpartition(")")[2].split()[_ARGUMENTS])
        memory.seek(start)
        memory.write(title.encode()[: end - start - 1].ljust(end - start, b"\0"))
