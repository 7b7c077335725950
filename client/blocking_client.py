"""Writes clients/client.py, the client that blocks, from the one for asyncio:
`python client/blocking_client.py`.
"""

import subprocess
import sys
from pathlib import Path

_CLIENTS = Path(__file__).parent / "diptych_client" / "clients"
_SOURCE = _CLIENTS / "async_client.py"
_OUTPUT = _CLIENTS / "client.py"

_MODULE = (
    '"""The client that blocks. Do not edit: async_client.py is its source, and says how."""\n'
)
_IN_LOOP = "Created and used in one running event loop; calls may be concurrent."
_CANCEL = "for task_in_flight in waiting:\n                task_in_flight.cancel()"
_WAITING = "waiting: deque[Future["
# Each is found in the source, and replaced in this order.
_REPLACEMENTS = (
    (_IN_LOOP, "Safe to share between threads."),
    ("import asyncio\n", "from concurrent.futures import Future, ThreadPoolExecutor\n"),
    # a call that blocks prepares its image itself
    ("asyncio.to_thread(self._prepare, ", "self._prepare("),
    ("asyncio.to_thread(sent_image, ", "sent_image("),
    # predict_many has threads instead of tasks
    ("asyncio.Task", "Future"),
    (_WAITING, f"threads = ThreadPoolExecutor(concurrency)\n        {_WAITING}"),
    ("asyncio.create_task(ask(image))", "threads.submit(ask, image)"),
    ("await waiting.popleft()", "waiting.popleft().result()"),
    (_CANCEL, "threads.shutdown(cancel_futures=True)"),
    ("AsyncGenerator[str | Answer, None]", "Generator[str | Answer, None, None]"),
    ("AsyncGenerator[StoredImage, None]", "Generator[StoredImage, None, None]"),
    ("AsyncGenerator[Answer | DiptychError, None]", "Generator[Answer | DiptychError, None, None]"),
    ("Awaitable[SentT]", "SentT"),
    ("asynccontextmanager", "contextmanager"),
    ("aclosing", "closing"),
    ("aread()", "read()"),
    ("aclose()", "close()"),
    ("aiter_sse()", "iter_sse()"),
    ("grpc.aio", "grpc"),
    ("anext(", "next("),
    ("__aenter__", "__enter__"),
    ("__aexit__", "__exit__"),
    ("Async", ""),
    ("async ", ""),
    ("await ", ""),
)


def blocking_client() -> str:
    """Return client.py."""
    _, _, code = _SOURCE.read_text(encoding="utf-8").partition('"""\n\n')
    for asynchronous, blocking in _REPLACEMENTS:
        if asynchronous not in code:
            raise SystemExit(f"{_SOURCE.name} does not have {asynchronous!r}")
        code = code.replace(asynchronous, blocking)
    code = f"{_MODULE}\n{code}"
    unused_and_unsorted = "F401,I"
    for command in (("check", "--fix", "--quiet", "--select", unused_and_unsorted), ("format",)):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(_OUTPUT), "-"]
        code = subprocess.check_output(ruff, input=code, text=True)
    return code


if __name__ == "__main__":
    _OUTPUT.write_text(blocking_client(), encoding="utf-8")
