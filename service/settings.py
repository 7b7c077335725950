"""Settings, read once from the environment (prefix `DIPTYCH_`).

An unknown or invalid setting prevents the start; the error has variable, value and allowed values.
"""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from service.image_settings import ImageSettings
from service.setting_values import (
    Devices,
    HttpUrl,
    ModelIds,
    Names,
    RunnerUrls,
    StoreUrl,
    UrlHosts,
    split_runner_url,
)
from service.telemetry.logs import LogFormat
from wire.artifacts.devices import DeviceSetting, model_device
from wire.artifacts.part_precision import WantedPrecision

PREFIX = "DIPTYCH_"
BYTES_PER_MB = 1_000_000
_DEFAULT_BODIES = 50  # bodies of the maximum size that fit in the memory of requests


class SettingsError(Exception):
    """A setting is unknown or has an invalid value."""


class GeneralSettings(BaseModel):
    """Settings of processes, access, load, runners and telemetry."""

    models: ModelIds = Field(
        ("florence-2-mini", "paligemma-mini"),
        min_length=1,
        description="Served models, comma-separated: catalog ids; after an export hf:owner/name.",
    )
    catalog: Path = Field(Path("models/catalog.yaml"), description="Path of the model catalog.")
    adapters: Path | None = Field(
        None,
        description="Watched folder of LoRA adapters, one a sub-folder. Unset: the catalog's only.",
    )
    max_adapter_rank: int = Field(
        512, ge=1, le=65_536, description="Maximum rank of a layer in an adapter of the folder."
    )
    max_adapter_mb: int = Field(
        1_000,
        ge=1,
        le=100_000,
        description="Maximum size of one adapter of the folder, MB (1,000,000 bytes): its file,"
        " and its weights in float32.",
    )
    adapters_mb: int = Field(
        4_000,
        ge=1,
        le=1_000_000,
        description="Maximum memory of the adapters of a runner with one more of the folder, MB;"
        " each takes the highest rank among them. On a GPU their pool counts, and a quarter of the"
        " free memory is the limit.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on, for REST and gRPC.")
    port: int = Field(3000, ge=1, le=65535, description="REST port.")
    grpc_port: int = Field(3001, ge=0, le=65535, description="gRPC port; 0: disabled.")
    gateway_workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Gateway processes, which share both ports of one host. Each has its own"
        " memory and its own limits; those of keys are shared with DIPTYCH_SHARED_LIMITS_URL.",
    )
    processes: Literal["several", "one"] = Field(
        "several",
        description="Processes of this host's models; several: one each. one: the gateway loads"
        " them, which saves memory; docs/operations.md has what is lost.",
    )
    portable: bool = Field(
        False,
        description="Use nothing that Linux has and macOS has not, for tests of the ways that macOS"
        " always takes.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of API keys: a SHA-256 and its limits per line. Unset: none is required.",
    )
    shared_limits_url: StoreUrl | None = Field(
        None,
        description="Redis or Valkey in which gateways share what is used of the limits of keys,"
        " as `redis(s)://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`. Unset: each gateway process"
        " counts on its own.",
    )
    metrics_need_key: bool = Field(False, description="true: `/metrics` requires an API key.")
    health_needs_key: bool = Field(
        False,
        description="true: `/livez`, `/readyz`, `/healthz` and gRPC health require an API key.",
    )
    tls_certificate_file: Path | None = Field(
        None, description="PEM file of the certificate chain, for both ports. Unset: no TLS."
    )
    tls_key_file: Path | None = Field(
        None, description="PEM file of the certificate's private key, unencrypted."
    )
    url_hosts: UrlHosts = Field(
        (),
        description="Hosts from which images may be fetched by URL, comma-separated; `*`: any"
        " host; `HOST:PORT`: another port than the scheme's. Unset: image URLs are refused.",
    )
    url_timeout_s: int = Field(
        10, ge=1, le=3600, description="Timeout of fetching one image by URL, seconds."
    )
    label_studio_url: HttpUrl | None = Field(
        None,
        description="URL of the Label Studio whose uploaded and local files are fetched with the"
        " token of the request; its host may have a private address. Unset: they are refused.",
    )
    batches_folder: Path | None = Field(
        None, description="Folder of OpenAI's files and batches. Unset: disabled."
    )
    max_body_bytes: int = Field(
        20_000_000,
        ge=1_000,
        le=1_000_000_000,
        description="Maximum size of a request body or an image by URL, bytes.",
    )
    max_connections: int = Field(
        2_000, ge=1, le=1_000_000, description="Maximum HTTP connections; more are closed."
    )
    max_connections_per_address: int = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Maximum HTTP connections from one address or proxy; more are closed.",
    )
    max_pending_requests: int = Field(
        64, ge=1, le=10_000, description="Maximum requests in flight or queued; more get 429."
    )
    max_request_memory_mb: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum memory of request bodies, images by URL, and what is parsed of them,"
        " MB; more is refused with 429. At least 6 times DIPTYCH_MAX_BODY_BYTES; 0: 50 times.",
    )
    max_request_memory_mb_per_key: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Share of DIPTYCH_MAX_REQUEST_MEMORY_MB that one API key may hold, MB. At"
        " least 6 times DIPTYCH_MAX_BODY_BYTES; 0: all of it, while no other key holds any.",
    )
    max_waiting_tokens: int = Field(
        200_000,
        ge=1_000,
        le=1_000_000_000,
        description="Maximum estimated tokens (image, prompt and answer) of the requests queued"
        " for one model and its adapters; more are refused with 429.",
    )
    request_timeout_s: int = Field(60, ge=1, le=3600, description="Timeout of a request, seconds.")
    stuck_after_s: int = Field(
        60,
        ge=1,
        le=3600,
        description="A runner is not ready while an encoder batch or a decoder step takes longer"
        " than this, seconds; after twice this time its process ends and is restarted.",
    )
    start_timeout_s: int = Field(
        600, ge=5, le=86_400, description="Timeout of a runner's start, seconds; then it restarts."
    )
    vision_cache_mb: int = Field(
        256, ge=0, le=1_000_000, description="Size of a runner's features cache, MB; 0: disabled."
    )
    runner_urls: RunnerUrls = Field(
        (),
        description="Runners on other hosts, `MODEL=http://HOST:PORT`, comma-separated, one URL"
        " per model: its runner's or that of a proxy of several replicas. Unset: runners run on"
        " this host.",
    )
    max_running_requests: int = Field(
        0,
        ge=0,
        le=100_000,
        description="Maximum requests in flight per model and its adapters, over all replicas of"
        " its runner; more are queued in the gateway. 0: 1.5 times DIPTYCH_DECODER_MAX_BATCH_SIZE,"
        " by default 24 on CPU, 96 on CUDA.",
    )
    device: DeviceSetting = Field(
        "auto", description="Device of encoders and decoders; auto: CUDA if available."
    )
    devices: Devices = Field(
        (),
        description="Devices of single models, `MODEL=cpu`, `MODEL=cuda` or `MODEL=cuda:INDEX`,"
        " comma-separated; the index counts the GPUs that `CUDA_VISIBLE_DEVICES` shows.",
    )
    encoder_precision: WantedPrecision = Field(
        "auto", description="Precision of encoders; auto: the model's default."
    )
    decoder_precision: WantedPrecision = Field(
        "auto", description="Precision of decoders; auto: the model's default."
    )
    encoder_max_batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum images in an encoder's batch, at least 2; 0: 2 on CPU, 16 on CUDA.",
    )
    encoder_max_latency_ms: int = Field(
        3_600_000,
        ge=1_000,
        le=86_400_000,
        description="The batcher drops images with a higher expected latency, milliseconds; keep"
        " it far above the slowest batch.",
    )
    encoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of an encoder; 0: all cores, or 1 for a narrow model."
    )
    decoder_max_batch_size: int = Field(
        0,
        ge=0,
        le=256,
        description="Maximum sequences in a decoder's batch; 0: 16 on CPU, on CUDA 64 if they fit.",
    )
    decoder_max_positions: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum tokens of a sequence (image, prompt and answer); 0: the model's own"
        " maximum, on a GPU at most 1,024 in addition to the image's.",
    )
    decoder_max_waiting: int = Field(
        256, ge=1, le=100_000, description="Maximum sequences queued for a decoder; more get 429."
    )
    decoder_max_prefill_tokens: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Maximum tokens (image and prompt) prefilled between two decoder steps; 0:"
        " 4,096, on a CPU fewer for wide models: one sequence of a released one.",
    )
    decoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of a decoder; 0: all cores, or 1 for a narrow model."
    )
    calibration: Names = Field(
        (),
        description="Files of `diptych evaluate --calibrate`, before the artifacts', and of"
        " `diptych annotate --thresholds`; `off`: none.",
    )
    log_format: LogFormat = Field("text", description="Format of log lines.")
    otlp_endpoint: HttpUrl | None = Field(
        None,
        description="OTLP/HTTP trace collector: http(s) URL without `/v1/traces`. Unset: no spans.",
    )
    trace_sample: float = Field(
        1,
        ge=0,
        le=1,
        description="Exported fraction of traces started here; a caller's decision is kept.",
    )

    @field_validator("models", "url_hosts", "runner_urls", "devices", "calibration", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("encoder_max_batch_size")
    @classmethod
    def _check_batch_size(cls, value: int) -> int:
        if value == 1:
            raise ValueError(
                "BentoML's batcher needs batches of at least 2; 0 selects the device's default"
            )
        return value

    @property
    def is_one_process(self) -> bool:
        """True if the gateway loads the models of this host."""
        return self.processes == "one"

    def device_of(self, model_id: str) -> tuple[DeviceSetting, int | None]:
        """Return the device of a model, and the index of its GPU, or None for the first."""
        own = {model: (device, gpu) for model, device, gpu in map(model_device, self.devices)}
        return own.get(model_id, (self.device, None))

    def runner_url(self, model_id: str) -> str | None:
        """Return the URL of a model's runner, or None if it runs on this host."""
        return dict(map(split_runner_url, self.runner_urls)).get(model_id)

    @property
    def max_request_bytes(self) -> int:
        """Maximum memory of requests, bytes."""
        return self.max_request_memory_mb * BYTES_PER_MB or _DEFAULT_BODIES * self.max_body_bytes

    @property
    def max_request_bytes_of_key(self) -> int:
        """Maximum memory of the requests of one API key, bytes."""
        return self.max_request_memory_mb_per_key * BYTES_PER_MB or self.max_request_bytes


class Settings(ImageSettings, GeneralSettings):
    """All settings of the service, with unit, range and default."""

    model_config = ConfigDict(frozen=True)


def variable(field: str) -> str:
    """Return the name of a setting's environment variable."""
    return PREFIX + field.upper()
