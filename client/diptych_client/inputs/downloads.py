"""Images by URL, read by this client: bounded in size, number of redirects, and time."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from diptych_client.inputs.problems import Problems
from diptych_client.long_runs import RunError
from diptych_client.requests import begins_as_image

MAX_URLS = 100_000
MAX_BYTES = 200_000_000  # one image
_TIMEOUT_S = 30.0
_MAX_REDIRECTS = 5
_CONCURRENCY = 8
_UNSAFE = re.compile(r"[^\w.-]+")


def download(urls: Sequence[str], folder: Path, problems: Problems) -> None:
    """Write each image as NUMBER-NAME; one that cannot be read is a problem.

    Raise `RunError` if none can be read.
    """
    settings = {"follow_redirects": True, "max_redirects": _MAX_REDIRECTS}
    with httpx.Client(timeout=_TIMEOUT_S, **settings) as http:  # type: ignore[arg-type]

        def fetch(number: int, url: str) -> str:
            name = _UNSAFE.sub("_", unquote(Path(urlsplit(url).path).name))[-80:]
            data = bytearray()
            try:
                with http.stream("GET", url) as response:
                    response.raise_for_status()
                    for block in response.iter_bytes():
                        data += block
                        if len(data) > MAX_BYTES:
                            return f"the file is larger than {MAX_BYTES:,} bytes"
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                return str(error).partition("\n")[0]
            if not begins_as_image(data):
                return "not a JPEG, PNG or WebP file"
            path = folder / f"{number:06d}-{name}"
            if b"." not in name.encode()[-6:]:
                path = path.with_name(f"{path.name}.jpg")
            path.write_bytes(data)
            return ""

        with ThreadPoolExecutor(_CONCURRENCY) as threads:
            errors = list(threads.map(fetch, range(1, len(urls) + 1), urls))
    if all(errors):
        more = f"; none of the {len(urls):,} URLs can be read" if len(urls) > 1 else ""
        raise RunError(f"{urls[0]}: {errors[0]}{more}")
    for url, error in zip(urls, errors, strict=True):
        if error:
            problems.add(url, error, "image left out")
