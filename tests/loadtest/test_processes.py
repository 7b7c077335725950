import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from loadtest.processes import cpu_s, suspended, use_by_name
from tests.support.waiting import wait_until

CHILD = """
import os, sys, threading
os.open("/dev/null", os.O_RDONLY)
threading.Thread(target=sys.stdin.read, daemon=True).start()
filled = bytes(range(250)) * 40_000
print("ready", flush=True)
threading.Event().wait()
"""

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


def test_resources_of_a_process_and_its_children_by_name() -> None:
    command = [sys.executable, "-c", CHILD, "--service-name", "a-part"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        uses = use_by_name(os.getpid())
        child.kill()
    assert {"supervisor", "a-part"} <= uses.keys()
    use = uses["a-part"]
    assert use.num_threads == 2
    assert use.num_fds == 4  # standard streams and the null device
    assert 10 < use.memory_mb < 100


def test_an_ended_process_is_left_out() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert use_by_name(child.pid) == {}


def test_processes_without_a_name_are_counted_separately() -> None:
    command = ["sleep", "60"]
    with subprocess.Popen(command) as one, subprocess.Popen(command) as other:
        uses = use_by_name(os.getpid())
        one.kill()
        other.kill()
    assert {"supervisor", f"process {one.pid}", f"process {other.pid}"} <= uses.keys()


def test_a_suspended_process_and_its_children_take_no_processor_time_until_they_go_on() -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    parent = [sys.executable, "-c", f"import subprocess; subprocess.run({busy!r})"]
    with subprocess.Popen(parent, start_new_session=True) as server:
        try:
            wait_until(lambda: cpu_s(server.pid) > 0.3)
            with suspended(server.pid):
                before_s = cpu_s(server.pid)
                time.sleep(0.5)
                assert cpu_s(server.pid) <= before_s + 0.05  # the signal takes a moment
            wait_until(lambda: cpu_s(server.pid) > before_s + 0.1)
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def test_a_terminated_program_stops_its_server(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        server = psutil.Process(int(program.stdout.readline()))
        program.terminate()
        assert program.wait(timeout=30) == 1
    assert not server.is_running()
