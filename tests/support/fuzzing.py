"""Coverage-guided fuzzing of one reader: `python -m tests.support.fuzzing TARGET SECONDS CORPUS`,
by Atheris.

Inputs that reach new code are added to the folder CORPUS. The exit status is not 0 if the reader
raises an error that it does not declare, or takes more than a second; the input is then in the
current folder, and its error in the log.
"""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MAX_CPU_S = 1.0
_MAX_INPUT_BYTES = 4096
_MAX_MEMORY_MB = 3000


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of foreign bytes, the errors that it declares, and valid inputs."""

    read: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def check(target: Target, data: bytes) -> None:
    """Read an input; let an error through that is not declared, and raise one for an input that
    takes long.
    """
    start_s = time.process_time()
    with suppress(*target.errors):
        target.read(data)
    elapsed_s = time.process_time() - start_s
    if elapsed_s > MAX_CPU_S:
        raise TimeoutError(f"{len(data)} bytes take {elapsed_s:.1f} s")


def main() -> None:
    """Fuzz the target that the command line names."""
    import atheris

    name, seconds, corpus = sys.argv[1:]
    with atheris.instrument_imports(
        include=["service", "runners", "wire", "imaging", "tasks", "offline", "diptych_client"]
    ):
        from tests.support.fuzz_targets import TARGETS
    target = TARGETS[name]
    for number, seed in enumerate(target.seeds):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_INPUT_BYTES}",
        f"-rss_limit_mb={_MAX_MEMORY_MB}",
    ]
    atheris.Setup([sys.argv[0], *limits, corpus], lambda data: check(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
