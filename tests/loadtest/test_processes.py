import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from loadtest.processes import cpu_s
from tests.support.waiting import wait_until

PROGRAM = """
import sys, time
from pathlib import Path
from loadtest.processes import Launch, free_port, running
port = free_port()
command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
with running(Launch(command, port, "/"), Path(sys.argv[1])) as process_id:
    print(process_id, flush=True)
    time.sleep(60)
"""


def test_processor_time_includes_children() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    parent = [sys.executable, "-c", f"import subprocess; subprocess.run({busy!r})"]
    with subprocess.Popen(parent, start_new_session=True) as server:
        try:
            wait_until(lambda: cpu_s(server.pid) > 1)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_terminated_program_stops_its_server(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        server = psutil.Process(int(program.stdout.readline()))
        program.terminate()
        assert program.wait(timeout=60) == 1
    assert not server.is_running()
