"""The settings, read once from the environment (prefix `DIPTYCH_`).

An unknown or invalid setting prevents the start; the error has variable, value and allowed values.
"""

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from service.admission.addresses import parse_networks
from service.outbound.urls import AllowedHost
from service.telemetry.logs import LogFormat
from service.validation import in_one_line, rejected_field
from tasks.catalog import model_id_of
from tasks.errors import meant
from wire.artifacts.devices import DeviceSetting, EncoderProvider, model_device
from wire.artifacts.manifest import WantedPrecision
from wire.host import memory_limit_bytes

PREFIX = "DIPTYCH_"
BYTES_PER_MB = 1_000_000
_MAX_BODIES = 50  # bodies of the maximum size that fit in the memory of requests
_MIN_BODIES = 6  # memory of a body with wide characters while it is parsed
# 1 to 65535
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_HOST_AND_PORT = rf"(?:[^\[\]:/?#@\s]+|\[[0-9a-fA-F:.]+\])(?::(?:{_PORT}))?"
_PASSWORD = re.compile(r"//.*@")  # user and password in a URL
# Settings that require another.
_REQUIRED = {
    "metrics_need_key": "api_keys_file",
    "tls_certificate_file": "tls_key_file",
    "tls_key_file": "tls_certificate_file",
}
# Settings of earlier versions, and what replaces each.
REMOVED = {
    "DIPTYCH_ADAPTERS_MB": "the maximum is 4,000, and on a GPU a quarter of its free memory",
    "DIPTYCH_BATCHES_FOLDER": "answer many images with diptych annotate or python -m offline",
    "DIPTYCH_DECODER_MAX_PREFILL_TOKENS": "a runner chooses the maximum by its device and model",
    "DIPTYCH_DECODER_MAX_WAITING": "the maximum is 256; DIPTYCH_MAX_RUNNING_REQUESTS sets how many"
    " requests reach a runner",
    "DIPTYCH_ENCODER_MAX_LATENCY_MS": "an image waits until the deadline of its request",
    "DIPTYCH_HEALTH_NEEDS_KEY": "close the paths of health at the proxy",
    "DIPTYCH_IMAGES_KEPT_S": "an image is stored for an hour; DIPTYCH_IMAGES_MB bounds their size",
    "DIPTYCH_IMAGES_MB_PER_KEY": "keys share DIPTYCH_IMAGES_MB",
    "DIPTYCH_MAX_ADAPTER_MB": "the maximum is 1,000, and 4,000 for all adapters",
    "DIPTYCH_MAX_ADAPTER_RANK": "the maximum is 512",
    "DIPTYCH_MAX_CONNECTIONS": "the maximum is 2,000, or twice DIPTYCH_MAX_PENDING_REQUESTS",
    "DIPTYCH_MAX_CONNECTIONS_PER_ADDRESS": "the maximum is half of all, by default 1,000",
    "DIPTYCH_MAX_DECODED_IMAGES": "the maximum is the number of cores, at least 2 and at most 8",
    "DIPTYCH_MAX_IMAGE_SIDE_PX": "the maximum is 20,000; DIPTYCH_MAX_IMAGE_PIXELS bounds the area",
    "DIPTYCH_MAX_IMAGES": "the maximum is 10,000; DIPTYCH_IMAGES_MB bounds their size",
    "DIPTYCH_MAX_IMAGES_PER_KEY": "keys share 10,000 images; DIPTYCH_IMAGES_MB bounds their size",
    "DIPTYCH_MAX_REQUEST_MEMORY_MB": "the maximum is 50 times DIPTYCH_MAX_BODY_BYTES, at most a"
    " quarter of the control group's memory",
    "DIPTYCH_MAX_REQUEST_MEMORY_MB_PER_KEY": "keys share 50 times DIPTYCH_MAX_BODY_BYTES",
    "DIPTYCH_MAX_STEPS": "the maximum is 32",
    "DIPTYCH_MAX_STEP_ANSWERS": "the maximum is 256",
    "DIPTYCH_MAX_TILES": "the maximum is 64",
    "DIPTYCH_MAX_WAITING_TOKENS": "the maximum is 200,000; DIPTYCH_MAX_PENDING_REQUESTS bounds the"
    " requests",
    "DIPTYCH_PORTABLE": "the service requires Linux; on another system run its container",
    "DIPTYCH_PROCESSES": "each model of a host has a process of its own",
    "DIPTYCH_SHARED_LIMITS_URL": "deploy/haproxy/front.cfg sends each API key to one gateway, which"
    " applies its limits",
    "DIPTYCH_TRACE_SAMPLE": "set OTEL_TRACES_SAMPLER=parentbased_traceidratio and"
    " OTEL_TRACES_SAMPLER_ARG",
    "DIPTYCH_URL_TIMEOUT_S": "the timeout is 10 s, or DIPTYCH_REQUEST_TIMEOUT_S if that is less",
}

Names = tuple[str, ...]


class SettingsError(Exception):
    """A setting is unknown or has an invalid value."""


def _matching(pattern: str, allowed: str) -> AfterValidator:

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"it must be {allowed}")
        return text

    return AfterValidator(check)


def split_runner_url(pair: str) -> tuple[str, str]:
    match = re.fullmatch(rf"([^=]+)=(http://{_HOST_AND_PORT})/?", pair)
    if match is None:
        example = "such as florence-2-mini=http://10.0.0.1:3000"
        raise ValueError(f"{pair!r} must be MODEL=http://HOST:PORT, {example}")
    return match[1], match[2]


def _once_per_model(split: Callable[[str], tuple[object, ...]]) -> AfterValidator:
    """Return the check that `split`, which returns the model first, returns each model once."""

    def check(pairs: Names) -> Names:
        models = {split(pair)[0] for pair in pairs}
        if len(models) < len(pairs):
            raise ValueError("a model occurs twice")
        return pairs

    return AfterValidator(check)


def _check_hosts(hosts: Names) -> Names:
    for host in hosts:
        AllowedHost.parse(host)
    return hosts


def _check_networks(networks: Names) -> Names:
    parse_networks(networks)
    return networks


def _check_not_one(value: int) -> int:
    if value == 1:
        raise ValueError("the minimum is 2, and 0 selects the default")
    return value


_HTTP_FORM = "an http(s) URL of host, port and path, without credentials and query"
ModelIds = Annotated[
    Names, Field(min_length=1), AfterValidator(lambda names: tuple(map(model_id_of, names)))
]
ImagesFolder = Annotated[str, _matching(r"(?!\w+://).*", "a folder, not a URL")]
HttpUrl = Annotated[str, _matching(rf"https?://{_HOST_AND_PORT}(/[^?#\s]*)?", _HTTP_FORM)]
UrlHosts = Annotated[Names, AfterValidator(_check_hosts)]
TrustedProxies = Annotated[Names, AfterValidator(_check_networks)]
RunnerUrls = Annotated[Names, _once_per_model(split_runner_url)]
Devices = Annotated[Names, _once_per_model(model_device)]
NotOne = AfterValidator(_check_not_one)


class Settings(BaseModel):
    """All settings of the service, with unit, range and default; a text describes the one above."""

    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_extra=in_one_line
    )

    models: ModelIds = ("florence-2-mini", "paligemma-mini")
    """Served models, comma-separated: catalog ids; after an export hf:owner/name."""
    catalog: Path = Path("models/catalog.yaml")
    """Path of the model catalog."""
    remote_models: Path | None = None
    """YAML file of models that engines of OpenAI's protocol serve, beside DIPTYCH_MODELS."""
    adapters: Path | None = None
    """Watched folder of LoRA adapters, one a sub-folder. Unset: the catalog's only."""
    host: str = "127.0.0.1"
    """Address to listen on, for REST and gRPC."""
    port: Annotated[int, Field(ge=1, le=65535)] = 3000
    """REST port."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] = 3001
    """gRPC port; 0: disabled."""
    gateway_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Gateway processes, which share both ports of one host. Each has its own memory and counts
    the limits of keys separately."""
    api_keys_file: Path | None = None
    """File of API keys: a SHA-256 and its limits per line. Unset: none is required."""
    trusted_proxies: TrustedProxies = ()
    """IP addresses or networks of proxies, comma-separated, whose `X-Forwarded-For` names the
    client. A client without a key is its address, of IPv6 the /64 network. Unset: none."""
    metrics_need_key: bool = False
    """true: `/metrics` requires an API key."""
    tls_certificate_file: Path | None = None
    """PEM file of the certificate chain, for both ports. Unset: no TLS."""
    tls_key_file: Path | None = None
    """PEM file of the certificate's private key, unencrypted."""
    url_hosts: UrlHosts = ()
    """Hosts from which images may be fetched by URL, comma-separated; `*`: any host; `HOST:PORT`:
    another port than the scheme's. Unset: image URLs are refused."""
    label_studio_url: HttpUrl | None = None
    """URL of the Label Studio whose uploaded and local files are fetched with the token of the
    request; its host may have a private address. Unset: they are refused."""
    max_body_bytes: Annotated[int, Field(ge=1_000, le=1_000_000_000)] = 20_000_000
    """Maximum size of a request body or an image by URL, bytes."""
    max_pending_requests: Annotated[int, Field(ge=1, le=10_000)] = 64
    """Maximum requests in flight or queued; more get 429."""
    request_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 60
    """Timeout of a request, seconds."""
    stuck_after_s: Annotated[int, Field(ge=1, le=3600)] = 60
    """A runner is not ready while an encoder batch or a decoder step takes longer than this,
    seconds; after twice this time its process ends and is restarted."""
    start_timeout_s: Annotated[int, Field(ge=5, le=86_400)] = 600
    """Timeout of a runner's start, seconds; then it restarts."""
    vision_cache_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 256
    """Size of a runner's features cache, MB; 0: disabled."""
    runner_urls: RunnerUrls = ()
    """Runners on other hosts, `MODEL=http://HOST:PORT`, comma-separated, one URL per model: its
    runner's or that of a proxy of several replicas. Unset: runners run on this host."""
    max_running_requests: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Maximum requests in flight per model and its adapters, over all replicas of its runner, plus
    half as many of keys with none; more are queued in the gateway. 0: 1.5 times
    DIPTYCH_DECODER_MAX_BATCH_SIZE, by default 24 on CPU, 96 on CUDA."""
    device: DeviceSetting = "auto"
    """Device of encoders and decoders; auto: CUDA if available."""
    devices: Devices = ()
    """Devices of single models, `MODEL=cpu`, `MODEL=cuda` or `MODEL=cuda:INDEX`, comma-separated;
    the index counts the GPUs that `CUDA_VISIBLE_DEVICES` shows."""
    encoder_provider: EncoderProvider = "auto"
    """Provider of encoders on a GPU; auto: CUDA, or TensorRT without CUDA kernels."""
    encoder_precision: WantedPrecision = "auto"
    """Precision of encoders; auto: the model's default."""
    decoder_precision: WantedPrecision = "auto"
    """Precision of decoders; auto: the model's default."""
    encoder_max_batch_size: Annotated[int, Field(ge=0, le=256), NotOne] = 0
    """Maximum images in an encoder's batch, at least 2; 0: 2 on CPU, 16 on CUDA."""
    encoder_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of an encoder; 0: all cores, or 1 for a narrow model."""
    decoder_max_batch_size: Annotated[int, Field(ge=0, le=256)] = 0
    """Maximum sequences in a decoder's batch; 0: 16 on CPU, on CUDA 64 if they fit."""
    decoder_max_positions: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Maximum tokens of a sequence (image, prompt and answer); 0: the model's own maximum, on a GPU
    at most 1,024 in addition to the image's."""
    decoder_threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of a decoder; 0: all cores, or 1 for a narrow model."""
    calibration: Names = ()
    """Files of `diptych evaluate --calibrate`, before the artifacts', and of `diptych annotate
    --thresholds`; `off`: none."""
    log_format: LogFormat = "text"
    """Format of log lines."""
    otlp_endpoint: HttpUrl | None = None
    """OTLP/HTTP trace collector: http(s) URL without `/v1/traces`. Unset: no spans."""
    max_image_pixels: Annotated[int, Field(ge=1_000, le=500_000_000)] = 50_000_000
    """Maximum pixels of an image."""
    images_folder: ImagesFolder | None = None
    """Folder of the images that `POST /v1/images` stores, shared by gateways of one host. Unset:
    `images` in BENTOML_HOME."""
    images_mb: Annotated[int, Field(ge=0, le=10_000_000)] = 1_000
    """Maximum size of stored images, MB; 0: disabled."""

    @field_validator(
        *("models", "trusted_proxies", "url_hosts", "runner_urls", "devices", "calibration"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @property
    def url(self) -> str:
        scheme = "http" if self.tls_certificate_file is None else "https"
        return f"{scheme}://{self.host}:{self.port}"

    def device_of(self, model_id: str) -> tuple[DeviceSetting, int | None]:
        """Return the device of a model, and the index of its GPU, or None for the first."""
        for model, device, gpu in map(model_device, self.devices):
            if model == model_id:
                return device, gpu
        return self.device, None

    def runner_url(self, model_id: str) -> str | None:
        return dict(map(split_runner_url, self.runner_urls)).get(model_id)

    @property
    def call_timeout_s(self) -> int:
        """BentoML's timeout of a call; it must not expire before the request's deadline."""
        return self.request_timeout_s * 2

    @property
    def max_connections(self) -> int:
        """Maximum HTTP connections, from one address or proxy half of them; more are closed.

        Connections without a request take file descriptors and a little memory; those of one proxy
        carry all pending requests.
        """
        return max(2_000, 2 * self.max_pending_requests)

    @property
    def max_request_bytes(self) -> int:
        """Maximum memory of bodies, images by URL, and what is parsed of them; more gets 429.

        Fifty bodies of the maximum size, within a quarter of the control group's memory: the rest
        is for decoded images and, on one host, for the runners.
        """
        share_of_memory = memory_limit_bytes() // 4
        min_bytes = _MIN_BODIES * self.max_body_bytes
        return min(max(share_of_memory, min_bytes), _MAX_BODIES * self.max_body_bytes)


def variable(field: str) -> str:
    return PREFIX + field.upper()


def read_settings(environment: Mapping[str, str]) -> Settings:
    field_of = {variable(field): field for field in Settings.model_fields}
    texts: dict[str, str] = {}
    for name in sorted(environment):
        if name in field_of:
            texts[field_of[name]] = environment[name]
        elif name in REMOVED:
            raise SettingsError(f"{name} is no longer a setting: {REMOVED[name]}")
        elif name.startswith(PREFIX):
            raise SettingsError(
                f"{name} is not a setting{meant(name, field_of)};"
                f" the settings are {', '.join(sorted(field_of))}"
            )
    try:
        values = Settings.model_validate(texts)
    except ValidationError as error:
        rejected = rejected_field(error)
        field = rejected.name.partition(".")[0]
        text = _PASSWORD.sub("//…@", texts.get(field, ""))
        raise SettingsError(f"{variable(field)}={text!r} is invalid: {rejected.reason}") from error
    _check_together(values)
    return values


def _check_together(values: Settings) -> None:
    for name, other in _REQUIRED.items():
        if getattr(values, name) and not getattr(values, other):
            requirement = f"requires {variable(other)}, which is not set"
            raise SettingsError(f"{variable(name)} is set and {requirement}")
    for name in ("runner_urls", "devices"):
        for pair in getattr(values, name):
            model = pair.partition("=")[0]
            if model not in values.models:
                models = f"{variable('models')}={','.join(values.models)}"
                raise SettingsError(f"{variable(name)} names {model}, but {models}")


@cache
def settings() -> Settings:
    return read_settings(os.environ)
