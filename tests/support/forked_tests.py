"""Runs pytest in forks of a process that has imported the large packages, none of ours: `python -m
...` in a tree.

A line of stdin is a JSON object {arguments, first, timeout_s, log}; a line of stdout is pytest's
exit status, negative if a signal ended the run, which SIGALRM does after `timeout_s`. Tests of
modules named like `first` run first.
"""

import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

# They take most of the seconds of an import, pytest's plugins among them.
LARGE_PACKAGES = (
    *(
        "aiohttp",
        "bentoml",
        "grpc",
        "httpx",
        "numpy",
        "onnxruntime",
        "pandas",
        "peft",
        "PIL",
        "redis.asyncio",
        "torch",
    ),
    *(
        "_hypothesis_pytestplugin",
        "hypothesis",
        "playwright.sync_api",
        "schemathesis.pytest.plugin",
    ),
)
# The warning is about plugins that are imported before pytest.
_OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-W", "ignore:Module already imported")
# A changed loop may collect values for ever. Maps of files count, too: tests of wide models open
# one of 600 MB for each tensor.
_MAX_BYTES = 64 << 30
_KILLED_FIRST = "1000"  # if the machine's memory ends before


@dataclass(frozen=True, slots=True)
class _NamedFirst:
    """A plugin that runs the tests of one module before the others, which mostly confirm that it
    works.
    """

    name: str

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.name not in item.path.name)


def main() -> None:
    """Answer each line until stdin ends."""
    for package in LARGE_PACKAGES:
        importlib.import_module(package)
    for line in sys.stdin:
        print(_exit_code(**json.loads(line)), flush=True)


def _exit_code(arguments: Sequence[str], first: str, timeout_s: int, log: str) -> int:
    pid = os.fork()
    if not pid:
        os._exit(_run(arguments, first, timeout_s, log))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what the tests have started
    return status


def _run(arguments: Sequence[str], first: str, timeout_s: int, log: str) -> int:
    os.setsid()
    signal.alarm(timeout_s)
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_BYTES, _MAX_BYTES))
    Path("/proc/self/oom_score_adj").write_text(_KILLED_FIRST, encoding="ascii")
    file = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
    for fd in (1, 2):
        os.dup2(file, fd)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        return int(pytest.main([*_OPTIONS, *arguments], plugins=[_NamedFirst(first)]))
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()


if __name__ == "__main__":
    main()
