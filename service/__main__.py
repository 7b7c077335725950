"""Start the service: check settings and artifacts, then hand over to the supervisor of its processes.

python -m service
"""

import os
import sys

from runners.artifacts import ArtifactError, read_manifest, verify_files
from runners.model_store import artifact_folder
from service.api_keys import ApiKeys
from service.served_models import served_entries, served_precision
from service.settings import Settings, SettingsError, read_settings
from service.tls import check_tls_files
from tasks.catalog import CatalogError


def main() -> None:
    """Become the supervisor, or stop with one line that says what to change."""
    try:
        settings = read_settings(os.environ)
        _check(settings)
    except (SettingsError, CatalogError, ArtifactError) as error:
        sys.exit(f"diptych does not start: {error}")
    # numpy decodes masks in the gateway, small ones: its threads would only wait for those of the runners.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Threads of a decoder that wait for each other give their core to those of an encoder.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # The processes are forked from one that has no threads: what was loaded to check may have started some.
    models = [entry.id for entry in served_entries(settings)]
    os.execv(sys.executable, [sys.executable, "-m", "service.supervisor", *models])


def _check(settings: Settings) -> None:
    """Raise unless every served model has artifacts that are what their manifest says, and can run as it is set."""
    ApiKeys.load(settings.api_keys_file)
    check_tls_files(settings)
    for entry in served_entries(settings):
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        served_precision(manifest, settings)


if __name__ == "__main__":
    main()
