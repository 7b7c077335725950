"""Answers one task, or steps, about every image of folders, patterns, parquet and tar files.

    python -m offline images/ --task captioning --model florence-2-mini --output answers
    python -m offline images/ --steps steps.yaml --model florence-2-mini --output answers

Exit status: 0 if every image has an answer, 3 if some have an error; 1 if the run failed, 2 if it
was refused, 143 after SIGTERM, 130 after SIGINT: the same command resumes it.

The environment's DIPTYCH_ settings of devices, precisions and batches apply (docs/settings.md).
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from tqdm import tqdm

from offline.filesystems import InputError
from offline.output import Job, Output, OutputFormat, build_of, write_coco
from offline.shards import Shard, digest_of, plan_shards
from service.analysis import check_prompts, parse_plan
from service.errors import ServiceError
from service.http.body import form_value
from service.inference.models import ServedModel, ServedModels
from service.inference.prediction import task_prompts
from service.inference.request_fields import GenerationFields, parse_fields
from service.inference.served_models import load_served_models
from service.settings import PREFIX, Settings, SettingsError, read_settings
from tasks.catalog import CatalogError, load_catalog
from tasks.table import MAX_COORDINATE_PX
from wire.artifacts.manifest import ArtifactError

_REFUSALS = (InputError, ServiceError, SettingsError, CatalogError, ArtifactError)
_COCO_KINDS = ("detections", "instances")
_LARGEST_WH = (MAX_COORDINATE_PX, MAX_COORDINATE_PX)  # no image has a region beyond it
# Settings of a server, or of models that are not used here.
_NOT_OFFLINE = {f"{PREFIX}{name}" for name in ("RUNNER_URLS", "DEVICES", "ADAPTERS")}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    try:
        settings = settings_for(options.model)
        shards = plan_shards(options.inputs, options.column, options.shard_size)
        output = Output(options.output, job_of(options, settings, shards), options.overwrite)
        done = output.begin()
        remaining = [(index, shard) for index, shard in enumerate(shards) if index not in done]
    except _REFUSALS as error:
        print(f"python -m offline: {error}", file=sys.stderr)
        return 2
    if remaining:
        _answer(options, output, settings, remaining)
    if options.format == "coco":
        write_coco(output)
    output.remove_incomplete()
    num_images, num_failed = output.counts()
    print(f"{num_images} images in {options.output}; {num_failed} failed")
    return 3 if num_failed else 0


def _answer(
    options: argparse.Namespace, output: Output, settings: Settings, shards: list[tuple[int, Shard]]
) -> None:
    # takes seconds: not before a refusal
    from offline.pipeline import answer_shards, start_ray

    start_ray(options.address)
    num_failed = 0
    counts = answer_shards(output, shards, settings, options.actors)
    bar = tqdm(counts, total=len(shards), unit=" shards")
    for num_failed_of_shard in bar:
        num_failed += num_failed_of_shard
        bar.set_postfix(failed=num_failed, refresh=False)


def settings_for(model_id: str) -> Settings:
    """Return the settings, of which the served models are `model_id` and the base of an adapter."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OFFLINE}
    catalog = load_catalog(read_settings(environment | {f"{PREFIX}MODELS": model_id}).catalog)
    base_id = catalog[model_id].adapter_of if model_id in catalog else None
    models = dict.fromkeys((base_id or model_id, model_id))
    return read_settings(environment | {f"{PREFIX}MODELS": ",".join(models)})


def job_of(options: argparse.Namespace, settings: Settings, shards: Sequence[Shard]) -> Job:
    """Return the job; raise an error if the model cannot do it, whatever the image."""
    model = load_served_models(settings)[options.model]
    if options.steps is None:
        fields = task_fields(options, model)
    else:
        fields = {"steps": read_steps(options.steps, model.id)}
        if options.field or options.format == "coco":
            option = "--field" if options.field else "--format coco"
            raise InputError(f"{option} needs --task; with --steps, fields are those of the steps")
        steps = parse_plan(fields, ServedModels({model.id: model}))
        check_prompts(steps, _LARGEST_WH)
    return Job(
        build=build_of(model, fields, settings),
        fields=fields,
        output_format=options.format,
        shard_size=options.shard_size,
        num_shards=len(shards),
        images=digest_of(shards),
    )


def read_steps(path: str, model_id: str) -> Any:
    """Return the steps of a YAML or JSON file, asked of one model; raise `InputError`.

    The file has a list of steps, or an object with `steps`, such as a recipe of the client. The
    plan checks them.
    """
    try:
        document = yaml.safe_load(Path(path).read_bytes())
    except (OSError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--steps {path} cannot be read: {error}") from error
    steps = document.get("steps") if isinstance(document, dict) else document
    for step in steps if isinstance(steps, list) else ():
        if isinstance(step, dict) and "models" not in step:
            step.setdefault("model", model_id)
    return steps


def task_fields(options: argparse.Namespace, model: ServedModel) -> dict[str, Any]:
    """Return the fields of the task; raise an error if the model does not offer them."""
    texts = defaultdict[str, list[str]](list)  # a list's name is repeated
    for name, text in options.field:
        texts[name].append(text)
    is_coco = options.format == "coco"
    fields: dict[str, Any] = {"mask_format": "rle"} if is_coco else {}
    fields["task"] = options.task
    for name, values in texts.items():
        fields[name] = form_value(name, values)
    _, request = parse_fields(GenerationFields, fields)
    has_masks = request.task.result_kind in _COCO_KINDS and request.fields.mask_format == "rle"
    if is_coco and not has_masks:
        needed = "a task with boxes or masks, and mask_format=rle"
        raise InputError(f"--format coco needs {needed}; choose parquet or jsonl")
    task_prompts(model, request, _LARGEST_WH)
    return fields


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m offline", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    inputs = "folder, pattern, image, .parquet or .tar; path or URI"
    add("inputs", nargs="+", metavar="INPUT", help=inputs)
    question = parser.add_mutually_exclusive_group(required=True)
    question.add_argument("--task", help="task id")
    question.add_argument("--steps", metavar="FILE", help="steps of an analysis; YAML or JSON")
    add("--model", required=True, help="model id of the catalog")
    add("--output", required=True, help="folder; path or URI. An output of the same job is resumed")
    pair: dict[str, Any] = {"type": _field, "action": "append", "default": []}
    name = "field of /v1/predict; repeatable"
    add("-F", "--field", metavar="NAME=VALUE", help=name, **pair)
    add("--format", choices=get_args(OutputFormat), default="parquet", help="default %(default)s")
    add("--overwrite", action="store_true", help="replace files of OUTPUT that others wrote")
    add("--column", default="image", help="of parquet files: images or paths; default %(default)s")
    add("--shard-size", type=_positive, default=256, help="images per file; default %(default)s")
    add("--address", help="of a Ray cluster; default: Ray on this host")
    add("--actors", type=_positive, help="copies of the model; default: one per GPU, else per host")
    return parser.parse_args(arguments)


def _field(pair: str) -> tuple[str, str]:
    name, separator, text = pair.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{pair!r} must be NAME=VALUE, such as labels=circle")
    return name, text


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be at least 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
