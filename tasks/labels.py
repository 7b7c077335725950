"""The label of a box, from what the model wrote and what it was asked for."""

import re
from collections.abc import Iterable, Sequence

from tasks.results import Detection

_ARTICLE = re.compile(r"^(?:an?|the) ")


def resolve_label(written: str, asked: Sequence[str]) -> str:
    """Return the asked name that equals `written` apart from case and article, else `written`.

    Where nothing is written, return the one name that was asked for, or '' if there were several.
    """
    if not written:
        return asked[0] if len(asked) == 1 else ""
    equal = [name for name in asked if _bare(name) == _bare(written)]
    return min(equal, key=lambda name: name.casefold() != written.casefold(), default=written)


def answers_to_labels(detections: Iterable[Detection], labels: Sequence[str] | None) -> tuple[Detection, ...]:
    """Return the detections that answer a request: all where no `labels` were asked for, else those with one of them.

    Asked for a label that is absent, a model may write another one with its box; that is in the raw text only.
    """
    return tuple(detection for detection in detections if labels is None or detection.label in labels)


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.casefold())
