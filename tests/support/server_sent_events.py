"""Server-sent events as a client reads them."""

import json
from typing import Any


def parse_events(text: str) -> list[tuple[str, Any]]:
    """Return the name and the JSON of each event of a whole body."""
    blocks = text.removesuffix("\n\n").split("\n\n")
    events = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    return [(event.get("event", "message"), json.loads(event["data"])) for event in events]
