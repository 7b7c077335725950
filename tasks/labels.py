"""The label of a box, from what the model wrote and what it was asked for."""

import re
from collections.abc import Sequence

_ARTICLE = re.compile(r"^(?:an?|the) ")


def resolve_label(written: str, asked: Sequence[str]) -> str:
    """Return the asked name that equals `written` apart from case and article, else `written`.

    Where nothing is written, return the one name that was asked for, or '' if there were several.
    """
    if not written:
        return asked[0] if len(asked) == 1 else ""
    equal = [name for name in asked if _bare(name) == _bare(written)]
    return min(equal, key=lambda name: name.casefold() != written.casefold(), default=written)


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.casefold())
