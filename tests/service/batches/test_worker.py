"""One process runs the batches of a store, and continues after a defect."""

import asyncio
import sys

import pytest

from service.batches.store import Store
from tests.support.batch_lines import line
from tests.support.batch_runs import (
    completed,
    create,
    ends,
    now,
    working,
)
from tests.support.core_calls import run, until
from tests.support.fake_service import make_core


def test_a_defect_delays_batches(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [RuntimeError("a defect")]

    def fails_once(*_: object) -> None:
        if failures:
            raise failures.pop()

    monkeypatch.setattr(Store, "remove_expired", fails_once)
    assert completed(store, create(store, line("a"))).status == "completed"
    assert not failures


def test_one_worker_runs_a_store(store: Store) -> None:
    """POSIX locks are those of a process: here the first one has to be another."""
    hold = (
        "file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); print('held',"
        " flush=True); input()"
    )
    code = f"import fcntl, sys; {hold}"

    async def scenario() -> None:
        holder = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, str(store.path / "lock")),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert await holder.stdout.readline() == b"held\n"
        batch = create(store, line("a"))
        async with working(store, make_core()):
            await asyncio.sleep(0.1)
            assert now(store, batch).status == "validating"
            holder.kill()
            await until(ends(store, batch))
        await holder.wait()

    run(scenario())
