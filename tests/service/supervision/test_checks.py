"""The settings that stop a start."""

from pathlib import Path

import pytest
import trustme

from service.grpc_server import grpc_credentials
from service.settings import Settings, SettingsError
from service.supervision.roles import check_positions, check_tls_files
from service.supervision.supervisor import bentoml_tls_options
from tests.support.fake_service import FLORENCE_ID, served_models

MANIFEST = served_models().get(FLORENCE_ID).manifest


def tls_settings(folder: Path, name: str = "first") -> Settings:
    certificate = trustme.CA().issue_cert("diptych.test")
    chain = folder / f"{name}.pem"
    key = folder / f"{name}.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return Settings(tls_certificate_file=chain, tls_key_file=key)


def test_tls_applies_to_both_ports(tmp_path: Path) -> None:
    settings = tls_settings(tmp_path)
    check_tls_files(settings)
    paths = [str(settings.tls_certificate_file), str(settings.tls_key_file)]
    assert bentoml_tls_options(settings) == ["--ssl-certfile", paths[0], "--ssl-keyfile", paths[1]]
    assert grpc_credentials(settings) is not None


def test_no_tls_without_files() -> None:
    check_tls_files(Settings())
    assert bentoml_tls_options(Settings()) == []
    assert grpc_credentials(Settings()) is None


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("tls_certificate_file", "missing"),
        ("tls_certificate_file", "text"),
        ("tls_certificate_file", "."),
        ("tls_key_file", "missing"),
        ("tls_key_file", "text"),
        ("tls_key_file", "second.key"),
    ],
)
def test_invalid_tls_files_are_refused(tmp_path: Path, field: str, name: str) -> None:
    (tmp_path / "text").write_text("no certificate")
    tls_settings(tmp_path, "second")
    settings = tls_settings(tmp_path).model_copy(update={field: tmp_path / name})
    message = r"^DIPTYCH_TLS_CERTIFICATE_FILE=.* with DIPTYCH_TLS_KEY_FILE=.* must be a"
    with pytest.raises(SettingsError, match=message):
        check_tls_files(settings)


def test_positions_hold_more_than_an_image() -> None:
    num_image_tokens = MANIFEST.num_image_tokens
    for max_positions in (0, num_image_tokens + 1):
        check_positions(MANIFEST, Settings(decoder_max_positions=max_positions))
    message = f"an image of {FLORENCE_ID} takes {num_image_tokens} positions"
    with pytest.raises(SettingsError, match=message):
        check_positions(MANIFEST, Settings(decoder_max_positions=num_image_tokens))
