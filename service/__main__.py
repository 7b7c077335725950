"""Starts the service or a part of it.

python -m service [gateway | runner MODEL]     (service/supervision/roles.py)
"""

import os
import sys

from wire.host import process_environment


def main() -> None:
    """Become the supervisor, with the environment that libraries read when they are loaded."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        from service.supervision.roles import USAGE

        print(f"usage: {USAGE}\nIts settings are environment variables: docs/settings.md")
        return
    if sys.platform != "linux":
        container = "run the container (docs/operations.md)"
        sys.exit(f"diptych does not start: it requires Linux, not {sys.platform}; {container}")
    # not this module: `show_as` cuts the names of processes to the length of the command line
    program = [sys.executable, "-m", "service.supervision.supervisor", *sys.argv[1:]]
    os.execve(sys.executable, program, process_environment(os.environ))


if __name__ == "__main__":
    main()
