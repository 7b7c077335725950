"""The report as one self-contained HTML file: the tables of the Markdown, and the plots."""

import base64
import html
import re
from collections.abc import Iterable, Sequence

_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Load</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; color: #222 }
body { margin: 2em auto; max-width: 110em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
table { display: block; overflow-x: auto }
td, th { border: 1px solid #ccc; padding: .2em .6em; text-align: right }
td:first-child, th:first-child { text-align: left }
th { background: #eee; font-weight: 600 }
img { max-width: 100% }
</style>
"""


def html_page(markdown: str, plots: Sequence[bytes]) -> str:
    """Return the page of a report in Markdown, with headings, lists, tables and paragraphs, and of
    plots in PNG.
    """
    blocks = [_block(block) for block in markdown.strip().split("\n\n")]
    images = [
        f'<img alt="plot" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for png in plots
    ]
    return _HEAD + "\n".join([*blocks[:2], *images, *blocks[2:]]) + "\n</html>\n"


def _block(block: str) -> str:
    lines = block.splitlines()
    if block.startswith("#"):
        marks, _, text = block.partition(" ")
        return f"<h{len(marks)}>{_inline(text)}</h{len(marks)}>"
    if block.startswith("- "):
        return f"<ul>{''.join(f'<li>{_inline(line[2:])}</li>' for line in lines)}</ul>"
    if block.startswith("| "):
        header, _, *rows = lines
        return f"<table>{_row(header, 'th')}{''.join(_row(row, 'td') for row in rows)}</table>"
    return f"<p>{_inline(block)}</p>"


def _row(line: str, tag: str) -> str:
    return f"<tr>{_cells(line.strip('|').split('|'), tag)}</tr>"


def _cells(cells: Iterable[str], tag: str) -> str:
    return "".join(f"<{tag}>{_inline(cell.strip())}</{tag}>" for cell in cells)


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text))
