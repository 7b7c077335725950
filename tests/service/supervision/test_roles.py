from pathlib import Path

import pytest
import trustme
import yaml

from service.inference.served_models import served_entries
from service.rpc.server import grpc_credentials
from service.settings import Settings, SettingsError
from service.supervision.roles import (
    Role,
    check,
    check_positions,
    check_runner_urls,
    check_tls_files,
)
from service.supervision.supervisor import bentoml_tls_options
from tests.support.catalog import FLORENCE, ROOT
from tests.support.fake_service import FLORENCE_ID, served

MODELS = ("florence-2-mini", "paligemma-mini")
A, B = MODELS
URLS = (f"{A}=http://10.0.0.1:3000",)


@pytest.mark.parametrize(
    "arguments", [("a",), ("runner",), ("gateway", "a"), ("runner", "a", "b"), ("encoder", "a")]
)
def test_unknown_arguments(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError, match=r"is not a role; usage: python -m service \[gateway"):
        Role.parse(arguments)


@pytest.mark.parametrize(
    ("arguments", "front", "behind"),
    [
        ((), "diptych", [f"{B}-runner"]),
        (("gateway",), "diptych", []),
        (("runner", A), f"{A}-runner", []),
    ],
)
def test_role_determines_the_processes(
    arguments: tuple[str, ...], front: str, behind: list[str]
) -> None:
    role = Role.parse(arguments)
    values = Settings(models=(*MODELS, B), runner_urls=URLS)
    assert (role.front(), role.runners_behind(values)) == (front, behind)
    if role.name == "gateway":
        with pytest.raises(SettingsError, match="RUNNER_URLS has no URL for paligemma-mini"):
            check_runner_urls(role, values)
    else:
        check_runner_urls(role, values)


def test_runner_alone() -> None:
    environment = {
        "DIPTYCH_MODELS": "b",
        "DIPTYCH_RUNNER_URLS": "b=http://x",
        "DIPTYCH_REMOTE_MODELS": "remote.yaml",
        "DIPTYCH_DEVICES": "b=cuda:1, a=cuda:0",
        "DIPTYCH_PORT": "1",
        "PATH": "/bin",
    }
    alone = Role.parse(("runner", "a")).environment(environment)
    expected = {"DIPTYCH_MODELS": "a", "DIPTYCH_DEVICES": "a=cuda:0"}
    assert alone == expected | {"DIPTYCH_PORT": "1", "PATH": "/bin"}
    assert Role.parse(("gateway",)).environment(environment) == environment


def catalog_with(folder: Path, *adapters: str) -> Path:
    """Write a catalog that also has adapters of the first model."""
    file = folder / "catalog.yaml"
    rows = yaml.safe_load((ROOT / "models" / "catalog.yaml").read_text(encoding="utf-8"))["models"]
    rows += [{"id": name, "adapter_of": A, "source": "tuned"} for name in adapters]
    file.write_text(yaml.safe_dump({"models": rows}), encoding="utf-8")
    return file


def test_adapters_run_with_their_base(tmp_path: Path) -> None:
    catalog = catalog_with(tmp_path, "tuned-0", "tuned-1")
    values = Settings(models=(B, "tuned-0", A), catalog=catalog)
    assert Role.parse(()).runners_behind(values) == [f"{A}-runner", f"{B}-runner"]
    urls = (f"{A}=http://x", f"{B}=http://y")
    check_runner_urls(Role.parse(("gateway",)), values.model_copy(update={"runner_urls": urls}))
    environment = {"DIPTYCH_MODELS": ", ".join(values.models), "DIPTYCH_CATALOG": str(catalog)}
    assert Role.parse(("runner", A)).environment(environment)["DIPTYCH_MODELS"] == f"{A},tuned-0"
    assert Role.parse(("runner", B)).environment(environment)["DIPTYCH_MODELS"] == B


def test_adapter_needs_its_base(tmp_path: Path) -> None:
    values = Settings(models=("tuned",), catalog=catalog_with(tmp_path, "tuned"))
    with pytest.raises(SettingsError, match=f"has tuned, an adapter of {A}; add {A}"):
        served_entries(values)


@pytest.mark.parametrize(
    "setting", [{"devices": ("tuned=cpu",)}, {"runner_urls": ("tuned=http://x",)}]
)
def test_adapter_has_no_runner(tmp_path: Path, setting: dict[str, tuple[str]]) -> None:
    values = Settings(models=(A, "tuned"), catalog=catalog_with(tmp_path, "tuned"))
    with pytest.raises(SettingsError, match=f"names tuned, an adapter; name its base {A}"):
        served_entries(values.model_copy(update=setting))


def test_engine_has_no_runner(tmp_path: Path) -> None:
    row = {"id": "far", "family": "openai", "url": "http://a/v1", "model": "m"}
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(yaml.safe_dump({"models": [{**row, "dialect": "gemma"}]}))
    values = Settings(models=("far",), catalog=catalog)
    check(Role.parse(("gateway",)), values)
    with pytest.raises(SettingsError, match="far has no runner: an engine serves it"):
        check(Role.parse(("runner", "far")), values)


MANIFEST = served(FLORENCE).manifest


def tls_settings(folder: Path, name: str = "first") -> Settings:
    certificate = trustme.CA().issue_cert("diptych.test")
    chain = folder / f"{name}.pem"
    key = folder / f"{name}.key"
    chain.write_bytes(b"".join(pem.bytes() for pem in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    return Settings(tls_certificate_file=chain, tls_key_file=key)


def test_tls_is_that_of_both_ports(tmp_path: Path) -> None:
    settings = tls_settings(tmp_path)
    check_tls_files(settings)
    paths = [str(settings.tls_certificate_file), str(settings.tls_key_file)]
    assert bentoml_tls_options(settings) == ["--ssl-certfile", paths[0], "--ssl-keyfile", paths[1]]
    assert grpc_credentials(settings) is not None
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
