"""Text on a terminal: what a server or a dataset wrote cannot move the cursor, colour, or reorder
what is shown.
"""

import re

import typer

# Control characters except tab and newline, line separators, and marks that override the direction
# of text.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return the text with control characters as JSON escapes them, so that JSON stays the same
    document.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def echo(text: str, is_error: bool = False) -> None:
    """Print a text on stdout, or on stderr."""
    typer.echo(printable(text), err=is_error)
