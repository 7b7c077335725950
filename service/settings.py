"""Settings, read once from the environment (prefix `DIPTYCH_`).

A bad or an unknown setting stops the start; the message names the variable, the value and what is allowed.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runners.artifacts.devices import DeviceSetting
from runners.artifacts.precision import WantedPrecision
from service.images.url_rules import AllowedHost
from service.telemetry.logs import LogFormat
from service.validation import rejected_field

PREFIX = "DIPTYCH_"
BYTES_PER_MB = 1_000_000
# Settings that mean nothing without another.
_NEEDED = {
    "metrics_need_key": "api_keys_file",
    "health_needs_key": "api_keys_file",
    "tls_certificate_file": "tls_key_file",
    "tls_key_file": "tls_certificate_file",
}


class SettingsError(Exception):
    """A setting is unknown or has a bad value."""


class Settings(BaseModel):
    """Every setting of the service, with its unit, range and default."""

    model_config = ConfigDict(frozen=True)

    models: tuple[str, ...] = Field(
        ("florence-2-mini", "paligemma-mini"), min_length=1, description="Served models, ids of the catalog, by commas."
    )
    catalog: Path = Field(Path("models/catalog.yaml"), description="The catalog file.")
    host: str = Field("127.0.0.1", description="Address that the REST port listens on.")
    port: int = Field(3000, ge=1, le=65535, description="REST port.")
    grpc_port: int = Field(3001, ge=0, le=65535, description="gRPC port, on the same address; 0: no gRPC.")
    api_keys_file: Path | None = Field(
        None,
        description="File with the SHA-256 of an API key a line, and its limits. Unset: no key is asked for.",
    )
    metrics_need_key: bool = Field(False, description="true asks for an API key at `/metrics`.")
    health_needs_key: bool = Field(
        False, description="true asks for one at `/livez`, `/readyz`, `/healthz` and of gRPC's health service."
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM file of the certificate and its chain, for both ports. Unset: no TLS."
    )
    tls_key_file: Path | None = Field(None, description="PEM file of the certificate's key, without a password.")
    url_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts that images are read from by URL, by commas; `*` is any, `:PORT` another port than that of "
        "http or https. Unset: URLs are refused.",
    )
    url_timeout_s: int = Field(10, ge=1, le=3600, description="Time for reading one image by its URL, seconds.")
    max_body_bytes: int = Field(
        20_000_000, ge=1_000, le=1_000_000_000, description="Largest request body, and image by URL, bytes."
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1_000, le=500_000_000, description="Most pixels of an image, width times height."
    )
    max_pending_requests: int = Field(
        64, ge=1, le=10_000, description="Most requests at work or waiting; more are refused with 429."
    )
    max_waiting_tokens: int = Field(
        200_000,
        ge=1_000,
        le=1_000_000_000,
        description="Most tokens, of image, prompt and answer by estimate, that wait for one model; "
        "more are refused with 429.",
    )
    request_timeout_s: int = Field(60, ge=1, le=3600, description="Time for one request, seconds.")
    stuck_after_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="Not ready while a batch of an encoder or a step of a decoder takes longer, seconds.",
    )
    vision_cache_mb: int = Field(
        256, ge=0, le=1_000_000, description="Image features that a runner keeps, MB of 1,000,000 bytes; 0 keeps none."
    )
    runner_urls: tuple[str, ...] = Field(
        (),
        description="Runners at other addresses, `MODEL=http://HOST:PORT`, comma-separated, one URL for a model; "
        "behind it may be a proxy and many replicas. Unset: runners run on this host.",
    )
    max_running_requests: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Maximum requests of one model in flight at its runner, all replicas together; more wait in the "
        "gateway. 0: 1.5 times DIPTYCH_DECODER_MAX_BATCH_SIZE.",
    )
    device: DeviceSetting = Field("auto", description="Where encoders and decoders run; auto takes CUDA if there.")
    encoder_precision: WantedPrecision = Field("auto", description="Of the encoders; auto takes each model's default.")
    decoder_precision: WantedPrecision = Field("auto", description="Of the decoders; auto takes each model's default.")
    encoder_max_batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum images in one batch of a vision encoder, at least 2; 0: 2 on the CPU, 16 on CUDA.",
    )
    encoder_max_latency_ms: int = Field(
        3_600_000,
        ge=1_000,
        le=86_400_000,
        description="Images that the batcher expects to be later than this are dropped, milliseconds; keep it far "
        "above the slowest batch.",
    )
    encoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of an encoder; 0: every core, 1 if the model is narrow."
    )
    decoder_max_batch_size: int = Field(16, ge=1, le=256, description="Most sequences written at once by a decoder.")
    decoder_max_positions: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Most tokens of a sequence, of image, prompt and answer; 0: as many as the model allows.",
    )
    decoder_max_waiting: int = Field(
        256, ge=1, le=100_000, description="Most sequences that wait for a decoder; more are refused with 429."
    )
    decoder_max_prefill_tokens: int = Field(
        4096, ge=1, le=1_000_000, description="Most tokens, image and prompt, that a decoder reads between two steps."
    )
    decoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of a decoder; 0: every core, 1 if the model is narrow."
    )
    log_format: LogFormat = Field("text", description="Of each line of the log.")
    otlp_endpoint: str | None = Field(
        None,
        description="http(s) URL of a collector that takes traces by OTLP over HTTP, without the path `/v1/traces`. "
        "Unset: no spans are made.",
    )
    trace_sample: float = Field(
        1,
        ge=0,
        le=1,
        description="Share of traces that are exported, of those that begin here; a caller's own choice is kept.",
    )

    @field_validator("models", "url_hosts", "runner_urls", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("url_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            AllowedHost.parse(host)
        return value

    @field_validator("encoder_max_batch_size")
    @classmethod
    def _check_batch_size(cls, value: int) -> int:
        if value == 1:
            raise ValueError("BentoML's batcher needs batches of at least 2; 0 is the device's default")
        return value

    @field_validator("runner_urls")
    @classmethod
    def _check_runner_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        models = [model for model, _ in map(_runner_url, value)]
        if len(set(models)) < len(models):
            raise ValueError("a model has two URLs; give the one of a proxy that balances its replicas")
        return value

    def runner_url(self, model_id: str) -> str | None:
        """Return where a model's runner listens; None: on this host."""
        return dict(map(_runner_url, self.runner_urls)).get(model_id)

    @property
    def max_running(self) -> int:
        """Requests of one model in flight at its runner: images that are encoded meanwhile keep the slots full."""
        return self.max_running_requests or self.decoder_max_batch_size * 3 // 2

    @field_validator("otlp_endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("it must be an http or https URL of host, port and path, without user and query")
        return value


def _runner_url(pair: str) -> tuple[str, str]:
    """Return model and URL of `MODEL=http://HOST:PORT`; raise `ValueError`."""
    model_id, _, url = pair.partition("=")
    parts = urlsplit(url)
    is_plain = parts.scheme == "http" and parts.path in ("", "/") and not (parts.query or parts.fragment)
    if not (model_id and is_plain and parts.hostname and "@" not in parts.netloc and _has_port(parts)):
        raise ValueError(f"{pair!r} must be MODEL=http://HOST:PORT, such as florence-2-mini=http://10.0.0.1:3000")
    return model_id, url.rstrip("/")


def _has_port(parts: SplitResult) -> bool:
    """Return True for a valid port, or none."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def variable(field: str) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + field.upper()


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from the process's environment; raise `SettingsError`."""
    field_of = {variable(field): field for field in Settings.model_fields}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in field_of:
            raise SettingsError(f"{name} is not a setting; there are {', '.join(sorted(field_of))}")
    try:
        values = Settings.model_validate({f: environment[name] for name, f in field_of.items() if name in environment})
    except ValidationError as error:
        rejected = rejected_field(error)
        name = variable(rejected.name.partition(".")[0])
        raise SettingsError(f"{name}={environment.get(name)!r} is not allowed: {rejected.reason}") from error
    _check_together(values)
    return values


def _check_together(values: Settings) -> None:
    """Raise `SettingsError` for a setting that means nothing beside the others."""
    for name, other in _NEEDED.items():
        if getattr(values, name) and not getattr(values, other):
            raise SettingsError(f"{variable(name)} is set, and needs {variable(other)}, which is not")
    for model, _ in map(_runner_url, values.runner_urls):
        if model not in values.models:
            served = ",".join(values.models)
            raise SettingsError(f"{variable('runner_urls')} has a URL of {model}; {variable('models')} is {served}")


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return read_settings(os.environ)


def settings_table() -> str:
    """Return the README's table of settings."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        rows.append(f"| `{variable(name)}` | {_shown(field.default)} | {field.description}{_range(name)} |")
    return "\n".join(rows)


def _shown(default: object) -> str:
    text = ",".join(default) if isinstance(default, tuple) else str(default)
    return "unset" if default in (None, ()) else f"`{text.lower() if isinstance(default, bool) else text}`"


def _range(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return f" One of {', '.join(schema['enum'])}."
    return f" {schema['minimum']} to {schema['maximum']}." if "minimum" in schema else ""
