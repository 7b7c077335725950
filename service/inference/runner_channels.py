"""The channel to each model's runner, which is a process of this host or another, or this one."""

from collections.abc import Mapping

from runners.bentoml_internals import local_runner_url
from runners.options import runner_name
from service.inference.served_models import ServedModel, local_models, served_entries
from service.process_options import call_timeout_s, runner_options
from service.settings import Settings
from wire.http_channel import HttpChannel
from wire.runner_channel import RunnerChannel
from wire.telemetry.runner_metrics import START_TIME_SECONDS


def open_channels(models: Mapping[str, ServedModel], values: Settings) -> dict[str, RunnerChannel]:
    """Return the channel to each runner; with DIPTYCH_PROCESSES=one load the models of this host.

    Raise `ArtifactError` or a library's error if one does not load.
    """
    entries = served_entries(values)
    in_process = local_models(entries, values) if values.is_one_process else []
    channels: dict[str, RunnerChannel] = {}
    for model in models.values():
        if model.runner_id == model.id and model.id not in in_process:
            url = values.runner_url(model.id) or local_runner_url(runner_name(model.id))
            channels[model.id] = HttpChannel(url, model.manifest.build_key, call_timeout_s(values))
    if in_process:
        # a late import: a gateway without models must load neither torch nor ONNX Runtime
        from runners.in_process_channel import load_channels

        options = [runner_options(model_id, values, entries) for model_id in in_process]
        manifests = [models[model_id].manifest for model_id in in_process]
        loaded = load_channels(list(zip(manifests, options, strict=True)))
        channels.update(zip(in_process, loaded, strict=True))
        for model_id in in_process:
            START_TIME_SECONDS.labels(model_id, "runner").set_to_current_time()
    return channels
