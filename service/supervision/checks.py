"""The checks of a start, before anything is served."""

import ssl

from service.admission.api_keys import ApiKeys
from service.batches.store import Store
from service.inference.served_models import (
    chosen_precisions,
    local_models,
    served_entries,
    served_precision,
    served_scoring,
)
from service.settings import Settings, SettingsError, variable
from service.supervision.roles import Role
from wire.artifacts.manifest import (
    FILES_OF_GATEWAY,
    Manifest,
    files_of_runner,
    read_manifest,
    verify_files,
)
from wire.artifacts.model_store import artifact_folder, check_base


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
        if settings.batches_folder is not None:
            Store(settings.batches_folder).prepare()
    for entry in served_entries(settings):
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
    """Raise `SettingsError` if a gateway alone has no URL for a runner."""
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
