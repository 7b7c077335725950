"""Settings, read once from the environment (prefix `DIPTYCH_`).

A bad or an unknown setting stops the start; the message names the variable, the value and what is allowed.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from runners.devices import DeviceSetting
from runners.precision import WantedPrecision

PREFIX = "DIPTYCH_"


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
        None, description="File with one SHA-256 of an API key a line, hexadecimal. Unset: no key is asked for."
    )
    max_body_bytes: int = Field(20_000_000, ge=1_000, le=1_000_000_000, description="Largest request body, bytes.")
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
    vision_cache_mb: int = Field(
        256, ge=0, le=1_000_000, description="Most image features kept in memory, MB of 1,000,000 bytes; 0 keeps none."
    )
    device: DeviceSetting = Field("auto", description="Where encoders and decoders run; auto takes CUDA if there.")
    encoder_precision: WantedPrecision = Field("auto", description="Of the encoders; auto takes each model's default.")
    decoder_precision: WantedPrecision = Field("auto", description="Of the decoders; auto takes each model's default.")
    encoder_max_batch_size: int = Field(
        0, ge=0, le=256, description="Most images in one batch of an encoder; 0: 2 on the CPU, 16 on CUDA."
    )
    encoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of an encoder; 0: every core, 1 if the model is narrow."
    )
    decoder_max_batch_size: int = Field(16, ge=1, le=256, description="Most sequences written at once by a decoder.")
    decoder_max_waiting: int = Field(
        256, ge=1, le=100_000, description="Most sequences that wait for a decoder; more are refused with 429."
    )
    decoder_max_prefill_tokens: int = Field(
        4096, ge=1, le=1_000_000, description="Most tokens, image and prompt, that a decoder reads between two steps."
    )
    decoder_threads: int = Field(
        0, ge=0, le=256, description="Threads of a decoder; 0: every core, 1 if the model is narrow."
    )

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


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
        return Settings.model_validate({f: environment[name] for name, f in field_of.items() if name in environment})
    except ValidationError as error:
        detail = error.errors()[0]
        name = variable(str(detail["loc"][0]))
        raise SettingsError(f"{name}={environment.get(name)!r} is not allowed: {detail['msg']}") from error


@cache
def settings() -> Settings:
    """Return the settings of this process."""
    return read_settings(os.environ)


def settings_table() -> str:
    """Return the README's table of settings."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = ",".join(field.default) if isinstance(field.default, tuple) else field.default
        shown = "unset" if default is None else f"`{default}`"
        rows.append(f"| `{variable(name)}` | {shown} | {field.description}{_range(name)} |")
    return "\n".join(rows)


def _range(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    if "enum" in schema:
        return f" One of {', '.join(schema['enum'])}."
    return f" {schema['minimum']} to {schema['maximum']}." if "minimum" in schema else ""
