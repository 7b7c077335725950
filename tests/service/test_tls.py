from pathlib import Path

import pytest
import trustme

from service.settings import Settings, SettingsError
from service.tls import bentoml_tls_options, check_tls_files, grpc_credentials


@pytest.fixture
def files(tmp_path: Path) -> Settings:
    return issued(tmp_path, "first")


def issued(folder: Path, name: str) -> Settings:
    certificate = trustme.CA().issue_cert("diptych.test")
    files = Settings(
        tls_certificate_file=folder / f"{name}.pem", tls_key_file=folder / f"{name}.key"
    )
    assert files.tls_certificate_file
    assert files.tls_key_file
    files.tls_certificate_file.write_bytes(
        b"".join(pem.bytes() for pem in certificate.cert_chain_pems)
    )
    files.tls_key_file.write_bytes(certificate.private_key_pem.bytes())
    return files


def test_without_files_there_is_no_tls() -> None:
    check_tls_files(Settings())
    assert bentoml_tls_options(Settings()) == []
    assert grpc_credentials(Settings()) is None


def test_certificate_and_key_apply_to_both_ports(files: Settings) -> None:
    check_tls_files(files)
    names = [str(files.tls_certificate_file), str(files.tls_key_file)]
    assert bentoml_tls_options(files) == ["--ssl-certfile", names[0], "--ssl-keyfile", names[1]]
    assert grpc_credentials(files) is not None


def test_invalid_files_stop_the_start_with_their_settings(files: Settings, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    other = issued(tmp_path, "second").tls_key_file
    for changed in (
        {"tls_certificate_file": tmp_path / "missing"},
        {"tls_key_file": tmp_path / "missing"},
        {"tls_certificate_file": tmp_path / "text"},
        {"tls_key_file": tmp_path / "text"},
        {"tls_key_file": other},
        {"tls_certificate_file": tmp_path},
    ):
        with pytest.raises(
            SettingsError,
            match=r"^DIPTYCH_TLS_CERTIFICATE_FILE=.* with DIPTYCH_TLS_KEY_FILE=.* must be a",
        ):
            check_tls_files(files.model_copy(update=changed))
