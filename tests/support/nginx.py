"""Debian's nginx in front of replicas: what one refuses or breaks off is asked of the other."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.running_service import free_port
from tests.support.waiting import wait_until

CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_max_body_size 2m;
    # Nothing in files: started by root, nginx is another user, who may not come here.
    client_body_buffer_size 2m;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream diptych {{ {servers} }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://diptych;
            proxy_buffering off;
            proxy_next_upstream error timeout http_503 non_idempotent;
            proxy_read_timeout 75s;
        }}
    }}
}}
"""


def has_nginx() -> bool:
    """Return True if nginx is installed."""
    return shutil.which("nginx") is not None


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def nginx(ports: Sequence[int], folder: Path) -> Iterator[str]:
    """Balance between services on `ports` of this machine; yield the address, stop at the end."""
    port = free_port()
    # A replica that failed once is asked again a second later, not ten.
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=1 fail_timeout=1s;" for each in ports)
    file = folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(folder=folder, servers=servers, port=port))
    process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(file)])
    try:
        wait_until(lambda: _listens(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
