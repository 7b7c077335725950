import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from service.settings import Settings
from service.supervision.health_check import problem
from tests.support.http_servers import Handler


@contextmanager
def answering(status: int, certificate: trustme.LeafCert | None = None) -> Iterator[int]:
    """Answer /readyz with `status`, other paths with 404; yield the port."""

    class Ready(Handler):
        def do_GET(self) -> None:
            self.send(status if self.path == "/readyz" else 404)

    with ThreadingHTTPServer(("127.0.0.1", 0), Ready) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield server.server_port
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "expected"), [(200, None), (503, "/readyz answers 503")])
def test_problem_of_a_status(status: int, expected: str | None) -> None:
    with answering(status) as port:
        assert problem(Settings(port=port)) == expected


def test_certificate_of_another_host() -> None:
    files = {"tls_certificate_file": Path("certificate.pem"), "tls_key_file": Path("key.pem")}
    with answering(200, trustme.CA().issue_cert("diptych.example.org")) as port:
        assert problem(Settings(port=port, **files)) is None
        assert "does not answer" in str(problem(Settings(port=port)))


def test_closed_port_is_a_problem() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert str(problem(Settings(port=port))).startswith(f"127.0.0.1:{port} does not answer: ")
