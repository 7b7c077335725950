"""The id of a request: the caller's own, where it is one that can stand in a log and a header, or a new one."""

import re
import uuid

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def is_request_id(given: str) -> bool:
    """Say whether `given` can stand in a log and a header."""
    return _REQUEST_ID.fullmatch(given) is not None


def request_id(given: str | None) -> str:
    """Return `given`, or a new id where it is none."""
    return given if given and is_request_id(given) else uuid.uuid4().hex
