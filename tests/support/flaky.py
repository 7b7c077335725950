"""Run pytest, then its failed tests once more, alone: `python -m tests.support.flaky ARGUMENT...`.

A test that passes the second time is printed as flaky and fails nothing. A module that cannot be
collected, a second failure and a second run without tests fail the run.
"""

import json
import subprocess
import sys
from pathlib import Path

LAST_FAILED = Path(".pytest_cache", "v", "cache", "lastfailed")
TESTS_FAILED = 1  # pytest's exit status; an interruption has another


def run_pytest(*arguments: str) -> tuple[int, str]:
    """Run pytest, copy its output, and return its exit status and the last line: its summary."""
    command = [sys.executable, "-m", "pytest", *arguments]
    summary = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            summary = line.strip() or summary
    return process.returncode, summary


def failed_tests() -> set[str]:
    """Return the ids of the tests that failed in the last run."""
    if not LAST_FAILED.exists():
        return set()
    return set(json.loads(LAST_FAILED.read_text(encoding="utf-8")))


def is_test(node_id: str) -> bool:
    """Return False for a module, which failed to be collected."""
    return "::" in node_id


def main(arguments: list[str]) -> int:
    """Run the tests, and those that failed again; return the exit status."""
    status, summary = run_pytest("--cache-clear", *arguments)
    first_failed = failed_tests()
    is_repeatable = bool(first_failed) and all(map(is_test, first_failed))
    summaries = [summary]
    if status == TESTS_FAILED and is_repeatable:
        alone = ("--last-failed", "--last-failed-no-failures", "none", "-n", "0")
        status, summary = run_pytest(*alone)
        summaries.append(f"again, alone: {summary}")
        for test in sorted(first_failed - failed_tests()):
            print(f"flaky: {test}")
    print(*summaries, sep="\n", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
