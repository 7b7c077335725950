"""Parsing of server-sent events."""

import json
from typing import Any


def parse_events(text: str) -> list[tuple[str, Any]]:
    blocks = text.removesuffix("\n\n").split("\n\n")
    events = []
    for block in blocks:
        pairs = [line.split(": ", 1) for line in block.split("\n")]
        events.append(dict(pairs))
    return [(event.get("event", "message"), json.loads(event["data"])) for event in events]
