"""Health check of the container image: exit status 0 if the service is ready.

python -m service.supervision.health_check
"""

import http.client
import ssl
import sys
from contextlib import closing

from service.settings import Settings, settings

_TIMEOUT_S = 5
_OK = 200


def problem(values: Settings) -> str | None:
    connection = http.client.HTTPConnection(values.host, values.port, timeout=_TIMEOUT_S)
    if values.tls_certificate_file is not None:
        unverified = ssl.create_default_context()  # the certificate names the public host
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            values.host, values.port, timeout=_TIMEOUT_S, context=unverified
        )
    try:
        with closing(connection):
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return f"{values.host}:{values.port} does not answer: {error}"
    return None if status == _OK else f"/readyz answers {status}"


if __name__ == "__main__":
    sys.exit(problem(settings()))
