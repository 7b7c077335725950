"""The command `diptych`: app.py has the commands, options.py their shared options, tables.py the
printed tables.
"""

from diptych_client.cli.app import main

__all__ = ["main"]
