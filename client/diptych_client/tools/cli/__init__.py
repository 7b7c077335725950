"""The command `diptych`: app.py has the commands, options.py their options, terminal.py prints.

The larger commands have a module each.
"""

from diptych_client.tools.cli.app import main

__all__ = ["main"]
