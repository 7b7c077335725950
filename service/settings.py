"""Settings, read once from the environment (prefix `DIPTYCH_`).

An unknown or invalid setting prevents the start; the message names variable, value and allowed values.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runners.artifacts.devices import DeviceSetting, model_device
from runners.artifacts.precision import WantedPrecision
from service.images.url_rules import AllowedHost
from service.telemetry.logs import LogFormat
from service.validation import rejected_field

PREFIX = "DIPTYCH_"
BYTES_PER_MB = 1_000_000
_DEFAULT_BODIES = 50  # of the maximum size, in the memory of requests
_MIN_BODIES = 6  # what a body with wide characters takes while it is parsed
# Settings that require another.
_REQUIRED = {
    "metrics_need_key": "api_keys_file",
    "health_needs_key": "api_keys_file",
    "shared_limits_url": "api_keys_file",
    "tls_certificate_file": "tls_key_file",
    "tls_key_file": "tls_certificate_file",
}

_PASSWORD = re.compile(r"//.*@")  # of a URL, with the user


class SettingsError(Exception):
    """A setting is unknown or has an invalid value."""


class Settings(BaseModel):
    """All settings of the service, with unit, range and default."""

    model_config = ConfigDict(frozen=True)

    models: tuple[str, ...] = Field(
        ("florence-2-mini", "paligemma-mini"), min_length=1, description="Served models: catalog ids, comma-separated."
    )
    catalog: Path = Field(Path("models/catalog.yaml"), description="Path of the model catalog.")
    adapters: Path | None = Field(
        None, description="Watched folder of LoRA adapters, one in each sub-folder. Unset: only those of the catalog."
    )
    host: str = Field("127.0.0.1", description="Address to listen on, for REST and gRPC.")
    port: int = Field(3000, ge=1, le=65535, description="REST port.")
    grpc_port: int = Field(3001, ge=0, le=65535, description="gRPC port; 0: disabled.")
    gateway_workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Gateway processes, which share both ports of one host. Each has its own memory and its own "
        "limits; those of keys are shared with DIPTYCH_SHARED_LIMITS_URL.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys: the SHA-256 of one key and its limits per line. Unset: no key is required.",
    )
    shared_limits_url: str | None = Field(
        None,
        description="Redis or Valkey in which gateways share what is used of the limits of keys, as "
        "`redis(s)://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. Unset: each gateway process counts on its own.",
    )
    metrics_need_key: bool = Field(False, description="true: `/metrics` requires an API key.")
    health_needs_key: bool = Field(
        False, description="true: `/livez`, `/readyz`, `/healthz` and gRPC health require an API key."
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM file of the certificate chain, for both ports. Unset: no TLS."
    )
    tls_key_file: Path | None = Field(None, description="PEM file of the certificate's private key, unencrypted.")
    url_hosts: tuple[str, ...] = Field(
        (),
        description="Hosts from which images may be fetched by URL, comma-separated; `*`: any host; `HOST:PORT`: "
        "another port than the scheme's. Unset: image URLs are refused.",
    )
    url_timeout_s: int = Field(10, ge=1, le=3600, description="Timeout of fetching one image by URL, seconds.")
    label_studio_url: str | None = Field(
        None,
        description="URL of the Label Studio whose uploaded and local files are fetched with the token of the request; "
        "its host may have a private address. Unset: they are refused.",
    )
    batches_folder: Path | None = Field(None, description="Folder of OpenAI's files and batches. Unset: disabled.")
    max_body_bytes: int = Field(
        20_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="Maximum size of a request body or an image by URL, bytes.",
    )
    max_image_pixels: int = Field(
        50_000_000, ge=1_000, le=500_000_000, description="Maximum size of an image, width times height, pixels."
    )
    max_image_side_px: int = Field(
        20_000, ge=100, le=65_535, description="Maximum width and height of an image, pixels."
    )
    max_decoded_images: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum images decoded at a time, at least 2, of one client one less; 0: the number of cores, at "
        "most 8. Each needs up to 16 bytes for every pixel.",
    )
    max_connections: int = Field(2_000, ge=1, le=1_000_000, description="Maximum HTTP connections; more are closed.")
    max_connections_per_address: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Maximum HTTP connections from one address; more are closed. Behind a proxy all come from its own.",
    )
    max_pending_requests: int = Field(
        64, ge=1, le=10_000, description="Maximum requests in flight or queued; more are refused with 429."
    )
    max_request_memory_mb: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum memory of request bodies, images by URL, and what is parsed of them, MB; more is refused "
        "with 429. At least 6 times DIPTYCH_MAX_BODY_BYTES; 0: 50 times.",
    )
    max_request_memory_mb_per_key: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Share of DIPTYCH_MAX_REQUEST_MEMORY_MB that one API key may hold, MB. At least 6 times "
        "DIPTYCH_MAX_BODY_BYTES; 0: all of it, while no other key holds any.",
    )
    max_waiting_tokens: int = Field(
        200_000,
        ge=1_000,
        le=1_000_000_000,
        description="Maximum estimated tokens (image, prompt and answer) of the requests queued for one model "
        "and its adapters; more are refused with 429.",
    )
    request_timeout_s: int = Field(60, ge=1, le=3600, description="Timeout of a request, seconds.")
    stuck_after_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="A runner is not ready while an encoder batch or a decoder step takes longer than this, seconds; "
        "after twice this time its process ends and is restarted.",
    )
    vision_cache_mb: int = Field(
        256,
        ge=0,
        le=1_000_000,
        description="Size of a runner's image features cache, MB (1,000,000 bytes); 0: disabled.",
    )
    runner_urls: tuple[str, ...] = Field(
        (),
        description="Runners on other hosts, `MODEL=http://HOST:PORT`, comma-separated, one URL per model: its "
        "runner's or that of a proxy of several replicas. Unset: runners run on this host.",
    )
    max_running_requests: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Maximum requests in flight per model and its adapters, over all replicas of its runner; more "
        "are queued in the gateway. 0: 1.5 times DIPTYCH_DECODER_MAX_BATCH_SIZE, by default 24 on CPU, 96 on CUDA.",
    )
    device: DeviceSetting = Field("auto", description="Device of encoders and decoders; auto: CUDA if available.")
    devices: tuple[str, ...] = Field(
        (),
        description="Devices of single models, `MODEL=cpu`, `MODEL=cuda` or `MODEL=cuda:INDEX`, comma-separated; the "
        "index counts the GPUs that `CUDA_VISIBLE_DEVICES` shows.",
    )
    encoder_precision: WantedPrecision = Field("auto", description="Precision of encoders; auto: the model's default.")
    decoder_precision: WantedPrecision = Field("auto", description="Precision of decoders; auto: the model's default.")
    encoder_max_batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum images in a batch of a vision encoder, at least 2; 0: 2 on CPU, 16 on CUDA.",
    )
    encoder_max_latency_ms: int = Field(
        3_600_000,
        ge=1_000,
        le=86_400_000,
        description="The batcher drops images with a higher expected latency, milliseconds; keep it far above the "
        "slowest batch.",
    )
    encoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of an encoder; 0: all cores, or 1 for a narrow model."
    )
    decoder_max_batch_size: int = Field(
        0, ge=0, le=256, description="Maximum sequences in a batch of a decoder; 0: 16 on CPU, on CUDA 64 if they fit."
    )
    decoder_max_positions: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum tokens of a sequence (image, prompt and answer); 0: the model's own maximum, on a GPU "
        "at most 1,024 in addition to the image's.",
    )
    decoder_max_waiting: int = Field(
        256, ge=1, le=100_000, description="Maximum sequences queued for a decoder; more are refused with 429."
    )
    decoder_max_prefill_tokens: int = Field(
        4096,
        ge=1,
        le=1_000_000,
        description="Maximum tokens (image and prompt) prefilled between two decoder steps.",
    )
    decoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of a decoder; 0: all cores, or 1 for a narrow model."
    )
    calibration: tuple[str, ...] = Field(
        (), description="Files of `diptych evaluate --calibrate`, preferred to the artifacts' own; `off`: none is used."
    )
    log_format: LogFormat = Field("text", description="Format of log lines.")
    otlp_endpoint: str | None = Field(
        None,
        description="http(s) URL of an OTLP/HTTP trace collector, without the path `/v1/traces`. Unset: no spans are "
        "recorded.",
    )
    trace_sample: float = Field(
        1,
        ge=0,
        le=1,
        description="Fraction of the traces started here that are exported; a caller's sampling decision is kept.",
    )

    @field_validator("models", "url_hosts", "runner_urls", "devices", "calibration", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("url_hosts")
    @classmethod
    def _check_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for host in value:
            AllowedHost.parse(host)
        return value

    @field_validator("max_decoded_images")
    @classmethod
    def _check_decoded(cls, value: int) -> int:
        if value == 1:
            raise ValueError("one client could take the only place; the minimum is 2, and 0 selects the default")
        return value

    @field_validator("encoder_max_batch_size")
    @classmethod
    def _check_batch_size(cls, value: int) -> int:
        if value == 1:
            raise ValueError("BentoML's batcher needs batches of at least 2; 0 selects the device's default")
        return value

    @field_validator("runner_urls")
    @classmethod
    def _check_runner_urls(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        models = [model for model, _ in map(_runner_url, value)]
        if len(set(models)) < len(models):
            raise ValueError("a model has two URLs; use the URL of a proxy that balances its replicas")
        return value

    @field_validator("devices")
    @classmethod
    def _check_devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        models = [model for model, _, _ in map(model_device, value)]
        if len(set(models)) < len(models):
            raise ValueError("a model has two devices")
        return value

    def device_of(self, model_id: str) -> tuple[DeviceSetting, int | None]:
        """Return the device of a model, and the index of its GPU; None: the first."""
        own = {model: (device, gpu) for model, device, gpu in map(model_device, self.devices)}
        return own.get(model_id, (self.device, None))

    def runner_url(self, model_id: str) -> str | None:
        """Return the URL of a model's runner; None: it runs on this host."""
        return dict(map(_runner_url, self.runner_urls)).get(model_id)

    @field_validator("shared_limits_url")
    @classmethod
    def _check_shared_limits(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        is_store = parts.scheme in ("redis", "rediss") and parts.hostname and _has_port(parts)
        if not is_store or parts.query or not re.fullmatch(r"/?|/\d{1,5}", parts.path):
            raise ValueError("it must be redis(s)://[USER:PASSWORD@]HOST[:PORT][/DATABASE]")
        return value

    @property
    def max_decoded(self) -> int:
        """Maximum images decoded at a time."""
        return self.max_decoded_images or min(max(2, len(os.sched_getaffinity(0))), 8)

    @property
    def max_request_bytes(self) -> int:
        """Maximum memory of requests, bytes."""
        return self.max_request_memory_mb * BYTES_PER_MB or _DEFAULT_BODIES * self.max_body_bytes

    @property
    def max_request_bytes_of_key(self) -> int:
        """Maximum memory of the requests of one API key, bytes."""
        return self.max_request_memory_mb_per_key * BYTES_PER_MB or self.max_request_bytes

    @field_validator("otlp_endpoint", "label_studio_url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("it must be an http(s) URL of host, port and path, without credentials and query")
        return value


def _runner_url(pair: str) -> tuple[str, str]:
    """Parse `MODEL=http://HOST:PORT`; raise `ValueError`."""
    model_id, _, url = pair.partition("=")
    parts = urlsplit(url)
    is_plain = parts.scheme == "http" and parts.path in ("", "/") and not (parts.query or parts.fragment)
    if not (model_id and is_plain and parts.hostname and "@" not in parts.netloc and _has_port(parts)):
        raise ValueError(f"{pair!r} must be MODEL=http://HOST:PORT, such as florence-2-mini=http://10.0.0.1:3000")
    return model_id, url.rstrip("/")


def _has_port(parts: SplitResult) -> bool:
    """Return True for a valid port and for none."""
    try:
        return parts.port is None or parts.port > 0
    except ValueError:
        return False


def variable(field: str) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + field.upper()


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings from environment variables; raise `SettingsError`."""
    field_of = {variable(field): field for field in Settings.model_fields}
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in field_of:
            raise SettingsError(f"{name} is not a setting; the settings are {', '.join(sorted(field_of))}")
    try:
        values = Settings.model_validate({f: environment[name] for name, f in field_of.items() if name in environment})
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
            raise SettingsError(f"{variable(name)} is set and requires {variable(other)}, which is not set")
    for name in ("max_request_memory_mb", "max_request_memory_mb_per_key"):
        given_mb = getattr(values, name)
        min_mb = math.ceil(_MIN_BODIES * values.max_body_bytes / BYTES_PER_MB)
        if 0 < given_mb < min_mb:
            required = f"{variable('max_body_bytes')}={values.max_body_bytes} requires at least {min_mb}"
            raise SettingsError(f"{variable(name)}={given_mb} is too small; {required}")
    for name in ("runner_urls", "devices"):
        for model in (pair.partition("=")[0] for pair in getattr(values, name)):
            if model not in values.models:
                served = ",".join(values.models)
                raise SettingsError(f"{variable(name)} names {model}, but {variable('models')}={served}")


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return read_settings(os.environ)
