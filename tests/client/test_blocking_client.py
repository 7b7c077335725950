"""client.py, the client that blocks, is written from the one for asyncio:
`python -m tests.client.test_blocking_client` writes it.
"""

import subprocess
import sys

from tests.support.export_cli import ROOT

_CLIENTS = ROOT / "client" / "diptych_client" / "clients"
SOURCE = _CLIENTS / "async_client.py"
WRITTEN = _CLIENTS / "client.py"

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


def test_client_that_blocks_is_the_one_for_asyncio() -> None:
    assert WRITTEN.read_text(encoding="utf-8") == blocking_client(), "write it again"


def blocking_client() -> str:
    """Return client.py."""
    _, _, code = SOURCE.read_text(encoding="utf-8").partition('"""\n\n')
    for asynchronous, blocking in _REPLACEMENTS:
        assert asynchronous in code, f"{SOURCE.name} does not have {asynchronous!r}"
        code = code.replace(asynchronous, blocking)
    unused_and_unsorted = "F401,I"
    fix = ("check", "--fix", "--quiet", "--select", unused_and_unsorted)
    return _ruff(_ruff(f"{_MODULE}\n{code}", *fix), "format")


def _ruff(code: str, *command: str) -> str:
    arguments = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(WRITTEN), "-"]
    return subprocess.check_output(arguments, input=code, cwd=ROOT, text=True)


if __name__ == "__main__":
    WRITTEN.write_text(blocking_client(), encoding="utf-8")
