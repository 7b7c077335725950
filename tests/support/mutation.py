"""Mutation testing of tasks, admission and decoder: `python -m tests.support.mutation [--digits D ...]`.

mutmut changes one expression at a time and runs the tests that reach it. Of the mutants of each function those are run
whose number ends with one of the digits, a tenth for one digit; the exit status is 1 if less than nine tenths of them
are killed. Those that live are listed; `mutmut show NAME` has the change.

A mutant lives although a test fails for it if the test runs the code only in a process that it starts, or only at
import: mutmut sees neither. Code that needs a GPU has no test here (`python -m export.gpu_check`).
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

FOLDER = Path("mutants")
MIN_KILLED = 0.9
# mutmut's exit codes of a mutant (mutmut/stats.py); any other is a failed test or a timeout, which kill it.
_SURVIVED, _WITHOUT_TESTS, _SKIPPED = 0, 33, 34


def results(folder: Path, digits: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield name and exit code of every mutant of the sample that was run."""
    for file in sorted(folder.glob("**/*.meta")):
        codes: dict[str, int | None] = json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
        yield from ((name, code) for name, code in codes.items() if name.endswith(tuple(digits)) and code is not None)


def summary(mutants: Sequence[tuple[str, int]]) -> tuple[str, float]:
    """Return a table of the rooms with the mutants that live, and the share that is killed."""
    counted = [(name, code) for name, code in mutants if code != _SKIPPED]
    alive = [name for name, code in counted if code in (_SURVIVED, _WITHOUT_TESTS)]
    of_room, alive_in = (Counter(".".join(name.split(".")[:2]) for name in names) for names in (dict(counted), alive))
    rows = [f"| {room} | {num} | {num - alive_in[room]} |" for room, num in sorted(of_room.items())]
    table = ["| room | mutants | killed |", "|---|---:|---:|", *rows, "", *(f"alive: {name}" for name in alive)]
    return "\n".join(table), 1 - len(alive) / len(counted)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sample; return the exit status."""
    parser = argparse.ArgumentParser("python -m tests.support.mutation", description=(__doc__ or "").partition("\n")[0])
    help_of_digits = "last digits of the mutants' numbers; default: 3; empty: every mutant, which takes hours"
    parser.add_argument("--digits", nargs="+", default=["3"], metavar="D", help=help_of_digits)
    digits = parser.parse_args(arguments).digits
    names = [f"*{digit}" for digit in digits]
    mutmut = [str(Path(sys.executable).parent / "mutmut"), "run", "--max-children", "2", *names]
    with (FOLDER.parent / "mutation.log").open("w") as log:
        run = subprocess.run(mutmut, check=False, stdout=log, stderr=log)
    if run.returncode != 0:  # the folder may have the results of a run before
        print("the run failed: mutation.log has the reason", file=sys.stderr)
        return 1
    found = list(results(FOLDER, digits))
    text, share = summary(found)
    print(f"{text}\n{share:.1%} of the mutants are killed; at least {MIN_KILLED:.0%} must be")
    return 0 if share >= MIN_KILLED else 1


if __name__ == "__main__":
    sys.exit(main())
