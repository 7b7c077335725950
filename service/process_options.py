"""Options of runners and parts of the gateway, from the settings."""

from collections.abc import Sequence
from pathlib import Path

from imaging.files import ImageLimits
from runners.options import RunnerOptions, SchedulerLimits, max_default_slots
from service.images.fetching import FetchLimits, ImageFetcher
from service.images.handle_store import HandleStore, ImageStore, StoreLimits
from service.images.host_addresses import SystemResolver
from service.images.url_rules import AllowedHost
from service.inference.core import CoreLimits
from service.inference.served_models import adapters_of, local_models
from service.setting_values import is_store_url
from service.settings import BYTES_PER_MB, Settings
from tasks.catalog import CatalogEntry
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.devices import model_device
from wire.telemetry.tracing import TraceOptions


def call_timeout_s(values: Settings) -> int:
    """Return BentoML's timeout of a call; it must not expire before the request's deadline."""
    return values.request_timeout_s * 2


def max_slots(values: Settings) -> int:
    """Return the maximum number of slots of a decoder; a GPU may have memory for fewer."""
    devices = {values.device, *(device for _, device, _ in map(model_device, values.devices))}
    return values.decoder_max_batch_size or max(map(max_default_slots, devices))


def max_running(values: Settings) -> int:
    """Return the maximum requests in flight per model; images wait encoded in the runner."""
    return values.max_running_requests or max_slots(values) * 3 // 2


def trace_options(values: Settings) -> TraceOptions:
    return TraceOptions(values.otlp_endpoint, values.trace_sample)


def image_limits(values: Settings) -> ImageLimits:
    return ImageLimits(values.max_image_pixels, values.max_image_side_px)


def image_fetcher(values: Settings) -> ImageFetcher | None:
    """Return the fetcher of images by URL, or None if no host is allowed."""
    if not values.url_hosts:
        return None
    hosts = list(map(AllowedHost.parse, values.url_hosts))
    limits = FetchLimits(values.max_body_bytes, values.url_timeout_s)
    return ImageFetcher(hosts, limits, SystemResolver())


def image_store(values: Settings) -> ImageStore | None:
    """Return the store of images, or None if it is disabled; raise `SettingsError`."""
    place = values.images_folder
    if place is None or not values.images_mb:
        return None
    max_bytes = values.images_mb * BYTES_PER_MB
    max_bytes_of_key = values.images_mb_per_key * BYTES_PER_MB or max_bytes
    limits = StoreLimits(max_bytes, max_bytes_of_key, values.max_images, values.images_kept_s)
    if is_store_url(place):
        from service.images.valkey_images import ValkeyImages  # imports the store's client

        return ValkeyImages(place, limits)
    store = HandleStore(Path(place), limits)
    store.prepare()
    return store


def core_limits(values: Settings) -> CoreLimits:
    return CoreLimits(
        images=image_limits(values),
        max_decoded_images=values.max_decoded,
        max_pending=values.max_pending_requests,
        max_running=max_running(values),
        max_waiting_tokens=values.max_waiting_tokens,
        max_bytes=values.max_request_bytes,
        max_bytes_of_client=values.max_request_bytes_of_key,
        max_steps=values.max_steps,
        max_step_answers=values.max_step_answers,
        max_tiles=values.max_tiles,
    )


def runner_options(
    model_id: str, values: Settings, entries: Sequence[CatalogEntry]
) -> RunnerOptions:
    """Return the options of a model's runner; `entries` are the served ones."""
    device, gpu = values.device_of(model_id)
    cards: list[int] = []
    for own_device, own_gpu in map(values.device_of, local_models(entries, values)):
        if own_device != "cpu":
            cards.append(own_gpu or 0)  # the first card is the default
    return RunnerOptions(
        limits=SchedulerLimits(
            num_slots=values.decoder_max_batch_size,
            max_waiting=values.decoder_max_waiting,
            max_prefill_tokens=values.decoder_max_prefill_tokens,
            stuck_after_s=values.stuck_after_s,
        ),
        max_batch_size=values.encoder_max_batch_size,
        max_latency_ms=values.encoder_max_latency_ms,
        max_cache_bytes=values.vision_cache_mb * BYTES_PER_MB,
        max_positions=values.decoder_max_positions,
        encoder_threads=values.encoder_threads,
        decoder_threads=values.decoder_threads,
        device=device,
        gpu=gpu,
        encoder_precision=values.encoder_precision,
        decoder_precision=values.decoder_precision,
        timeout_s=call_timeout_s(values),
        traces=trace_options(values),
        adapters=adapters_of(model_id, entries),
        adapters_folder=values.adapters,
        aliases=next((each.aliases for each in entries if each.id == model_id), ()),
        adapter_limits=AdapterLimits(
            values.max_adapter_rank,
            values.max_adapter_mb * BYTES_PER_MB,
            values.adapters_mb * BYTES_PER_MB,
        ),
        start_timeout_s=values.start_timeout_s,
        num_sharing_gpu=max(1, cards.count(gpu or 0)),
    )
