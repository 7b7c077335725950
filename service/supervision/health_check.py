"""Asks the service of this host whether it is ready: the health check of its image, which has no curl.

python -m service.supervision.health_check      status 0: it is
"""

import http.client
import ssl
import sys

from service.settings import Settings, settings

_TIMEOUT_S = 5
_OK, _UNAUTHORIZED = 200, 401


def main() -> None:
    """End with status 0 if the service is ready, else with one line that says what is wrong."""
    sys.exit(problem(settings()))


def problem(values: Settings) -> str | None:
    """Return what is wrong with the service that runs with these settings, or None."""
    try:
        status = _readiness(values)
    except (OSError, http.client.HTTPException) as error:
        return f"{values.host}:{values.port} does not answer: {error}"
    # No key is known here: where one is needed, that the gateway asks for it has to do.
    is_well = status == _OK or (values.health_needs_key and status == _UNAUTHORIZED)
    return None if is_well else f"/readyz answers {status}"


def _readiness(values: Settings) -> int:
    """Return the status of /readyz."""
    connection = _connection(values)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status
    finally:
        connection.close()


def _connection(values: Settings) -> http.client.HTTPConnection:
    if values.tls_certificate_file is None:
        return http.client.HTTPConnection(values.host, values.port, timeout=_TIMEOUT_S)
    unverified = ssl.create_default_context()  # the certificate is for the name that clients use
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(values.host, values.port, timeout=_TIMEOUT_S, context=unverified)


if __name__ == "__main__":
    main()
