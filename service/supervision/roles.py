"""Roles: the parts of the service that one start runs, and the checks before it.

python -m service                 the gateway, and every runner without a URL in the settings
python -m service gateway         the gateway alone; all its runners have URLs
python -m service runner MODEL    one runner alone, on the service's host and port
"""

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from runners.options import runner_name
from service.admission.api_keys import ApiKeys
from service.inference.engine_calls import engine_headers
from service.inference.served_models import (
    adapters_of,
    chosen_precisions,
    engine_model,
    local_models,
    served_entries,
    served_precision,
    served_scoring,
)
from service.settings import Settings, SettingsError, variable
from tasks.catalog import load_catalog, model_id_of
from wire.artifacts.manifest import (
    FILES_OF_GATEWAY,
    Manifest,
    files_of_runner,
    read_manifest,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder, check_base

USAGE = "python -m service [gateway | runner MODEL]"
GATEWAY = "diptych"  # name of the BentoML service


@dataclass(frozen=True, slots=True)
class Role:
    """The part of the service that a start runs."""

    name: Literal["all", "gateway", "runner"]
    model_id: str = ""  # set for a runner only

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> "Role":
        match tuple(arguments):
            case ():
                return cls("all")
            case ("gateway",):
                return cls("gateway")
            case ("runner", model_id):
                return cls("runner", model_id_of(model_id))
        raise SettingsError(f"{' '.join(arguments)!r} is not a role; usage: {USAGE}")

    @property
    def is_runner(self) -> bool:
        return self.name == "runner"

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return `environment` with the settings of this role: a runner serves its model.

        Of the other served models it keeps the adapters of its model.
        """
        if not self.is_runner:
            return dict(environment)
        others = set(map(variable, ("runner_urls", "devices", "remote_models")))
        common = {name: value for name, value in environment.items() if name not in others}
        models = ",".join([self.model_id, *self._adapters(environment)])
        for pair in environment.get(variable("devices"), "").split(","):
            if pair.strip().partition("=")[0] == self.model_id:
                common[variable("devices")] = pair.strip()
        return common | {variable("models"): models}

    def _adapters(self, environment: Mapping[str, str]) -> list[str]:
        models = environment.get(variable("models"), "").split(",")
        served = [model_id_of(model.strip()) for model in models]
        path = environment.get(variable("catalog")) or Settings.model_fields["catalog"].default
        catalog = load_catalog(Path(path), served)
        return [model for model in adapters_of(self.model_id, catalog.values()) if model in served]

    def front(self) -> str:
        return runner_name(self.model_id) if self.is_runner else GATEWAY

    def runners_behind(self, values: Settings) -> list[str]:
        if self.name != "all":
            return []
        return list(map(runner_name, local_models(served_entries(values), values)))


def check(role: Role, settings: Settings) -> None:
    """Raise one of `REFUSALS` unless every served model has artifacts that match manifest and
    settings.

    Of a model, the files are hashed that the processes of this start read.
    """
    check_runner_urls(role, settings)
    if settings.adapters is not None and not settings.adapters.is_dir():
        raise SettingsError(f"{variable('adapters')}={str(settings.adapters)!r} is not a folder")
    if not role.is_runner:
        ApiKeys.load(settings.api_keys_file)
        check_tls_files(settings)
    for entry in served_entries(settings):
        if entry.engine:
            if role.is_runner and entry.id == role.model_id:
                raise SettingsError(f"{entry.id} has no runner: an engine serves it")
            if not role.is_runner:
                engine_model(entry, entry.engine, settings)
                engine_headers(entry.id, entry.engine)
            continue
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        if entry.adapter_of is not None:
            check_base(manifest, read_manifest(artifact_folder(entry.adapter_of)))
        has_encoder = entry.adapter_of is None or manifest.has_encoder
        files = None
        if settings.runner_url(entry.id) is not None:
            files = FILES_OF_GATEWAY
        elif has_encoder:
            encoder, _ = chosen_precisions(manifest, settings)
            files = files_of_runner(manifest, encoder)
        verify_files(folder, manifest, files)
        if entry.adapter_of is None:
            check_positions(manifest, settings)
            if not role.is_runner:
                served_scoring(manifest, folder, settings, served_precision(manifest, settings))


def check_runner_urls(role: Role, settings: Settings) -> None:
    missing = local_models(served_entries(settings), settings)
    if role.name == "gateway" and missing:
        raise SettingsError(
            f"{variable('runner_urls')} has no URL for {', '.join(missing)}; a gateway alone starts"
            " no runner"
        )


def check_positions(manifest: Manifest, settings: Settings) -> None:
    """Raise `SettingsError` if DIPTYCH_DECODER_MAX_POSITIONS has no room for image and prompt."""
    allowed = settings.decoder_max_positions
    if 0 < allowed <= manifest.num_image_tokens:
        needed = f"an image of {manifest.model_id} takes {manifest.num_image_tokens} positions"
        raise SettingsError(f"{variable('decoder_max_positions')}={allowed} is too low: {needed}")


def check_tls_files(settings: Settings) -> None:
    """Raise `SettingsError` unless the files are a certificate and its key, or unset."""
    certificate = settings.tls_certificate_file
    key = settings.tls_key_file
    if certificate is None or key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"{variable('tls_certificate_file')}={str(certificate)!r} with"
            f" {variable('tls_key_file')}={str(key)!r} must be a certificate and its key in PEM"
            f" without a password: {error}"
        ) from error
