"""The checks of a start, before anything is served: settings, artifacts, and that they match."""

from service.admission.api_keys import ApiKeys
from service.batches.store import Store
from service.inference.served_models import (
    check_positions,
    chosen_precisions,
    served_entries,
    served_precision,
    served_scoring,
)
from service.settings import Settings, SettingsError, variable
from service.supervision.roles import Role
from service.tls import check_tls_files
from wire.artifacts.manifest import (
    FILES_OF_GATEWAY,
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
    role.check(settings)
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
            own = (
                files_of_runner(manifest, chosen_precisions(manifest, settings)[0])
                if manifest.has_encoder
                else None
            )
            verify_files(folder, manifest, own)
            continue
        encoder, _ = chosen_precisions(manifest, settings)
        is_remote = settings.runner_url(entry.id) is not None
        verify_files(
            folder, manifest, FILES_OF_GATEWAY if is_remote else files_of_runner(manifest, encoder)
        )
        check_positions(manifest, settings)
        if not role.is_runner:
            served_scoring(manifest, folder, settings, served_precision(manifest, settings))
