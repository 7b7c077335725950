"""TLS of both ports: the certificate file and its key file."""

import ssl
from typing import TYPE_CHECKING

from service.settings import Settings, SettingsError, variable

if TYPE_CHECKING:
    import grpc


def check_tls_files(settings: Settings) -> None:
    """Raise `SettingsError` unless the files are a certificate and its key, or unset."""
    certificate = settings.tls_certificate_file
    key = settings.tls_key_file
    if certificate is None or key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        names = (
            f"{variable('tls_certificate_file')}={str(certificate)!r} with"
            f" {variable('tls_key_file')}={str(key)!r}"
        )
        raise SettingsError(
            f"{names} must be a certificate and its key in PEM without a password: {error}"
        ) from error


def bentoml_tls_options(settings: Settings) -> list[str]:
    """Return the options of BentoML's worker for the HTTP port."""
    if settings.tls_certificate_file is None:
        return []
    return [
        "--ssl-certfile",
        str(settings.tls_certificate_file),
        "--ssl-keyfile",
        str(settings.tls_key_file),
    ]


def grpc_credentials(settings: Settings) -> "grpc.ServerCredentials | None":
    """Return the credentials of the gRPC port, or None without TLS."""
    if settings.tls_certificate_file is None or settings.tls_key_file is None:
        return None
    import grpc  # the supervisor needs it not

    key = settings.tls_key_file.read_bytes()
    certificate = settings.tls_certificate_file.read_bytes()
    return grpc.ssl_server_credentials([(key, certificate)])
