"""The command line: app.py has the commands, asked.py their common options, tables.py what is printed."""

from client.cli.app import main

__all__ = ["main"]
