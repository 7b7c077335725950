"""Steps that are asked about every image: read from a file, answered by one model, as rows.

Steps and answers are those of an analysis of the service (docs/analyze.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from offline.filesystems import InputError
from offline.rows import Row
from service.analysis.execution import analyze
from service.analysis.steps import parse_plan
from service.inference.core import Core, RequestContext
from service.inference.served_models import ServedModel, ServedModels
from service.process_options import core_limits, max_slots
from service.runner_client.runner_client import RunnerClient
from service.schema.analysis import analysis_json
from service.settings import Settings
from tasks.parameter_kinds import MAX_COORDINATE_PX

TASK = "analyze"  # the rows' task
Steps = Sequence[Mapping[str, Any]]

_MAX_FILE_BYTES = 1_000_000
_UNBOUNDED = 1 << 60  # the places of the run bound what is in progress
# Ids and times differ from run to run, the rest is in the row.
_OF_A_REQUEST = {"id", "task", "image", "usage", "vision_cache", "timings_ms", "labels"}


def read_steps(path: str, model_id: str) -> list[dict[str, Any]]:
    """Return the steps of a YAML or JSON file, asked of one model; raise `InputError`.

    The file has a list of steps, or an object with `steps`, such as a recipe of the client.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise InputError(f"--steps {path} is larger than {_MAX_FILE_BYTES} bytes")
        document = yaml.safe_load(data)
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--steps {path} cannot be read: {error}") from error
    steps = document.get("steps") if isinstance(document, dict) else document
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise InputError(f"--steps {path} must have steps: a list of objects")
    for step in steps:
        if "models" in step or step.setdefault("model", model_id) != model_id:
            named = step.get("models", step.get("model"))
            message = f"step {step.get('id')!r} names {named!r}; one model answers: {model_id}"
            raise InputError(f"--steps {path}: {message}")
    return steps


def check_steps(steps: Steps, model: ServedModel, settings: Settings) -> None:
    """Raise `ServiceError` if the model cannot answer the steps, whatever the image."""
    plan = parse_plan({"steps": steps}, ServedModels({model.id: model}), settings.max_steps)
    plan.check_prompts((MAX_COORDINATE_PX, MAX_COORDINATE_PX))


class Analyzer:
    """Answers the steps about images, without a limit on how many; used in one event loop."""

    def __init__(
        self,
        steps: Steps,
        model: ServedModel,
        runner: RunnerClient,
        settings: Settings,
    ) -> None:
        limits = replace(
            core_limits(settings),
            max_decoded_images=settings.max_decoded + 1,
            max_pending=_UNBOUNDED,
            max_running=2 * max_slots(settings),  # an image may have many tiles
            max_waiting_tokens=_UNBOUNDED,
            max_bytes=_UNBOUNDED,
            max_bytes_of_client=_UNBOUNDED,
        )
        self._model = model
        models = ServedModels({model.id: model})
        self._core = Core(models, {model.runner_id: runner}, limits)
        self._steps = steps

    async def row(self, key: str, data: bytes) -> Row:
        """Return the row of an image; raise the error of the image."""
        context = RequestContext(key, "offline", math.inf, needs_place=False)
        analysis = await analyze(self._core, data, {"steps": self._steps}, context)
        document = analysis_json(analysis, "").model_dump(mode="json")
        for step in document["steps"]:
            for answer in step["answers"]:
                for name in _OF_A_REQUEST & answer.keys():
                    del answer[name]
        size_wh = analysis.image_size_wh
        return Row(key, self._model.id, TASK, *size_wh, result={"steps": document["steps"]})
