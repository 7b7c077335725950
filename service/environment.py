"""The settings of a process, read once from its environment variables.

A bad or unknown one is refused by name.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cache

from pydantic import ValidationError

from service.settings import BYTES_PER_MB, PREFIX, Settings, SettingsError, variable
from service.validation import rejected_field
from tasks.errors import meant
from wire.host import is_portable, use_portable_ways

# Settings that require another.
_REQUIRED = {
    "metrics_need_key": "api_keys_file",
    "health_needs_key": "api_keys_file",
    "shared_limits_url": "api_keys_file",
    "tls_certificate_file": "tls_key_file",
    "tls_key_file": "tls_certificate_file",
}

_PASSWORD = re.compile(r"//.*@")  # user and password in a URL
_MIN_BODIES = 6  # memory of a body with wide characters while it is parsed


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables; raise `SettingsError`."""
    field_of = {variable(field): field for field in Settings.model_fields}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in field_of:
            raise SettingsError(
                f"{name} is not a setting{meant(name, field_of)};"
                f" the settings are {', '.join(sorted(field_of))}"
            )
    try:
        values = Settings.model_validate(
            {f: environment[name] for name, f in field_of.items() if name in environment}
        )
    except ValidationError as error:
        rejected = rejected_field(error)
        name = variable(rejected.name.partition(".")[0])
        given = _PASSWORD.sub("//…@", environment.get(name, ""))
        raise SettingsError(f"{name}={given!r} is invalid: {rejected.reason}") from error
    _check_together(values)
    return values


def _check_together(values: Settings) -> None:
    """Raise `SettingsError` for a combination of settings that is invalid."""
    for name, other in _REQUIRED.items():
        if getattr(values, name) and not getattr(values, other):
            raise SettingsError(
                f"{variable(name)} is set and requires {variable(other)}, which is not set"
            )
    if values.is_one_process and (values.gateway_workers > 1 or values.devices):
        raise SettingsError(
            f"{variable('processes')}=one excludes several {variable('gateway_workers')} and"
            f" {variable('devices')}; {variable('device')} is that of all models"
        )
    if values.gateway_workers > 1 and (values.portable or is_portable()):
        raise SettingsError(
            f"{variable('gateway_workers')}={values.gateway_workers} requires Linux, without"
            f" {variable('portable')}; 1 is allowed"
        )
    for name in ("max_request_memory_mb", "max_request_memory_mb_per_key"):
        given_mb = getattr(values, name)
        min_mb = math.ceil(_MIN_BODIES * values.max_body_bytes / BYTES_PER_MB)
        if 0 < given_mb < min_mb:
            required = (
                f"{variable('max_body_bytes')}={values.max_body_bytes} requires at least {min_mb}"
            )
            raise SettingsError(f"{variable(name)}={given_mb} is too small; {required}")
    for name in ("runner_urls", "devices"):
        for model in (pair.partition("=")[0] for pair in getattr(values, name)):
            if model not in values.models:
                served = ",".join(values.models)
                raise SettingsError(
                    f"{variable(name)} names {model}, but {variable('models')}={served}"
                )


@cache
def settings() -> Settings:
    """Return the settings of this process, which takes the portable ways if they say so."""
    values = read_settings(os.environ)
    if values.portable:
        use_portable_ways()
    return values
