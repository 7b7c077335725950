"""Images as requests name them: a file, the URL of one, or the id of a stored one.

The id of a stored image is `img_` and 48 hexadecimal digits:

    32 digits    a MAC of the API key and the image's content: the name of its file
    16 digits    a MAC of the API key and the name: the id was made by this service for this key

The same bytes of a key have the same id, which reveals neither. An id of another key and a made-up
one cannot be told apart; one of the key whose image is gone is known to have been valid.
"""

import hashlib
import hmac
import re
from dataclasses import dataclass

_ID = re.compile(r"img_([0-9a-f]{32})([0-9a-f]{16})")
ID_PREFIX = "img_"
ID_CHARS = len(ID_PREFIX) + 48


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The URL of an image, as sent by the client."""

    text: str


@dataclass(frozen=True, slots=True)
class ImageHandle:
    """The id of a stored image, as sent by the client."""

    text: str


ImageInput = bytes | ImageUrl | ImageHandle


def file_or_handle(data: bytes) -> bytes | ImageHandle:
    """Return a file, or the id in its place, which no image file begins with."""
    if data.startswith(ID_PREFIX.encode()) and len(data) <= ID_CHARS:
        return ImageHandle(data.decode(errors="replace"))
    return data


class HandleIds:
    """Makes and checks ids with a secret that all gateways of a store share."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def make(self, owner: str, data: bytes) -> str:
        name = self._mac("content", owner, hashlib.sha256(data).hexdigest(), 32)
        return f"{ID_PREFIX}{name}{self._mac('name', owner, name, 16)}"

    def name(self, owner: str, handle: ImageHandle) -> str | None:
        """Return the name in an id of an API key, or None for any other id."""
        match = _ID.fullmatch(handle.text)
        if match is None:
            return None
        expected = self._mac("name", owner, match[1], 16)
        return match[1] if hmac.compare_digest(expected, match[2]) else None

    def _mac(self, purpose: str, owner: str, text: str, num_digits: int) -> str:
        message = f"{purpose} {owner} {text}".encode()
        return hmac.new(self._secret, message, hashlib.sha256).hexdigest()[:num_digits]
