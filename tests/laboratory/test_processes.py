import subprocess
import sys
from pathlib import Path

import psutil

PROGRAM = """
import sys, time
from pathlib import Path
from laboratory.processes import Launch, free_port, running
port = free_port()
command = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
with running(Launch(command, port, "/"), Path(sys.argv[1])) as process_id:
    print(process_id, flush=True)
    time.sleep(60)
"""


def test_terminated_program_stops_its_server(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log")], stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        server = psutil.Process(int(program.stdout.readline()))
        program.terminate()
        assert program.wait(timeout=60) == 1
    assert not server.is_running()
