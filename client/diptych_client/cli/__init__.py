"""The command `diptych`: app.py has the commands, options.py their shared options, views.py what
they print.
"""

from diptych_client.cli.app import main

__all__ = ["main"]
