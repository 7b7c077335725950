"""Starts the service or a part of it.

python -m service [gateway | runner MODEL]     (service/supervision/roles.py)
"""

import os
import sys

from wire.host import process_environment


def main() -> None:
    """Start with the environment that libraries read when they are loaded."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        from service.supervision.roles import USAGE

        print(f"usage: {USAGE}\nIts settings are environment variables: docs/settings.md")
        return
    environment = process_environment(os.environ)
    if environment != os.environ:
        arguments = [sys.executable, "-m", "service", *sys.argv[1:]]
        os.execve(sys.executable, arguments, environment)
    from service.supervision.supervisor import start  # loads libraries

    start(sys.argv[1:])


if __name__ == "__main__":
    main()
