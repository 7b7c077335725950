"""The command `diptych`: app.py has the commands, options.py their options, views.py the tables."""

from diptych_client.cli.app import main

__all__ = ["main"]
