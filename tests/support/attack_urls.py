"""URLs that would have the service read what its clients cannot: each names an internal host that
listens on PORT.

attack_urls.json has them, and the addresses that an attacker's or an internal name server answers.
"""

import json
from pathlib import Path

_DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
INTERNAL = "127.0.0.1"
ADDRESSES: dict[str, list[str]] = _DATA["addresses"]
ATTACKS: list[str] = _DATA["urls"]


def attacks(port: int) -> list[str]:
    return [url.replace("PORT", str(port)) for url in ATTACKS]
