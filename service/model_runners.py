"""The encoders and decoders of the served models, as the settings have them: run here, or reached elsewhere."""

from collections.abc import Callable
from typing import Any

from runners.artifacts import Manifest, Part
from runners.decoder_service import DecoderOptions
from runners.encoder_service import EncoderOptions
from runners.limits import SchedulerLimits
from runners.tracing import TraceOptions
from service.host_addresses import SystemResolver
from service.one_runner import OneRunner
from service.replicated_runner import PartName, ReplicatedRunner
from service.runner_addresses import RunnerAddresses
from service.runner_apis import ApiT, Runner, RunnerLink
from service.runner_connections import Connection, LocalConnection, RemoteConnection
from service.settings import BYTES_PER_MB, Settings
from service.shared_memory import SharedMemory


def runner_timeout_s(values: Settings) -> int:
    """Return how long a call may take before BentoML drops it: above the request's own time, which decides."""
    return values.request_timeout_s * 2


def trace_options(values: Settings) -> TraceOptions:
    """Return where the spans of every process go."""
    return TraceOptions(values.otlp_endpoint, values.trace_sample)


def encoder_options(values: Settings) -> EncoderOptions:
    """Return how an encoder runs here."""
    return EncoderOptions(
        values.encoder_max_batch_size,
        values.encoder_threads,
        values.device,
        values.encoder_precision,
        runner_timeout_s(values),
        values.stuck_after_s,
        values.encoder_cache_mb * BYTES_PER_MB,
        trace_options(values),
    )


def decoder_options(values: Settings) -> DecoderOptions:
    """Return how a decoder runs here."""
    return DecoderOptions(
        SchedulerLimits(
            values.decoder_max_batch_size,
            values.decoder_max_waiting,
            values.decoder_max_prefill_tokens,
            values.stuck_after_s,
        ),
        values.decoder_max_positions,
        values.decoder_threads,
        values.device,
        values.decoder_precision,
        runner_timeout_s(values),
        trace_options(values),
    )


class ModelRunners:
    """Reaches the runners of this service's models; those elsewhere are watched from `start` to `stop`."""

    def __init__(self, values: Settings, memory: SharedMemory | None) -> None:
        self._values = values
        self._memory = memory
        self._resolver = SystemResolver()
        self._replicated: list[ReplicatedRunner[Any]] = []

    def runner(
        self, manifest: Manifest, part: Part, api: Callable[[Connection], ApiT], local_client: Any
    ) -> Runner[ApiT]:
        """Return the runner of a part: BentoML's dependency whose client is given, or replicas at URLs."""
        name = PartName(manifest.model_id, part)
        urls = self._values.runner_urls(part, manifest.model_id)
        if not urls:
            return OneRunner(RunnerLink(f"the {name}", api(LocalConnection(local_client)), self._memory))

        def link_to(url: str) -> RunnerLink[ApiT]:
            connection = RemoteConnection(url, manifest.build_key, runner_timeout_s(self._values))
            return RunnerLink(f"the {name} at {url}", api(connection), self._memory)

        replicated = ReplicatedRunner(name, RunnerAddresses(urls, self._resolver), link_to)
        self._replicated.append(replicated)
        return replicated

    async def start(self) -> None:
        """Find replicas and begin to watch them."""
        for replicated in self._replicated:
            await replicated.start()

    async def stop(self) -> None:
        """End watching, and the connections."""
        for replicated in self._replicated:
            await replicated.stop()
