"""Start the service, or a part of it: check settings and artifacts, then become the supervisor of its processes.

python -m service [gateway | encoder MODEL | decoder MODEL]     (service/supervision/roles.py)
"""

import os
import sys
from collections.abc import Mapping

from runners.artifacts.manifest import ArtifactError, read_manifest, verify_files
from runners.artifacts.store import artifact_folder
from service.admission.api_keys import ApiKeys
from service.inference.served_models import check_positions, served_entries, served_precision
from service.settings import Settings, SettingsError, read_settings
from service.supervision.roles import Role
from service.tls import check_tls_files
from tasks.catalog import CatalogError


def main() -> None:
    """Become the supervisor, or stop with one line that says what to change."""
    try:
        role = Role.parse(sys.argv[1:])
        environment = role.environment(os.environ)
        _check(role, read_settings(environment))
    except (SettingsError, CatalogError, ArtifactError) as error:
        sys.exit(f"diptych does not start: {error}")
    # The processes are forked from one that has no threads: what was loaded to check may have started some.
    os.execve(
        sys.executable,
        [sys.executable, "-m", "service.supervision.supervisor", *role.arguments],
        process_environment(environment),
    )


def process_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of all processes: what it does not say itself of the libraries in them."""
    defaults = {
        # numpy decodes masks in the gateway, small ones: its threads would only wait for those of the runners.
        "OPENBLAS_NUM_THREADS": "1",
        # Threads of a decoder that wait for each other give their core to those of an encoder.
        "OMP_WAIT_POLICY": "PASSIVE",
        # ONNX Runtime 1.32 tells its makers about models and machines, and BentoML 1.4 about services.
        "ORT_DISABLE_TELEMETRY": "1",
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return defaults | dict(environment)


def _check(role: Role, settings: Settings) -> None:
    """Raise unless every served model has artifacts that are what their manifest says, and can run as it is set."""
    role.check(settings)
    if not role.is_runner:
        ApiKeys.load(settings.api_keys_file)
        check_tls_files(settings)
    for entry in served_entries(settings):
        folder = artifact_folder(entry.id)
        manifest = read_manifest(folder)
        verify_files(folder, manifest)
        served_precision(manifest, settings)
        check_positions(manifest, settings)


if __name__ == "__main__":
    main()
