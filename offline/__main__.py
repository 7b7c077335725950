"""Answers one task, or steps, about every image of folders, patterns, parquet and tar files.

    python -m offline images/ --task captioning --model florence-2-mini --output answers
    python -m offline images/ --steps steps.yaml --model florence-2-mini --output answers

Exit status: 0 if every image has an answer, 1 if any failed, 2 if the run was refused. The
environment's DIPTYCH_ settings of devices, precisions and batches apply (docs/settings.md).
"""

import argparse
import os
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, get_args

from tqdm import tqdm

from offline.analyses import check_steps, read_steps
from offline.coco import write_coco
from offline.filesystems import InputError, is_within
from offline.job import Build, Job, OutputFormat
from offline.output import Output
from offline.shards import Shard, digest_of, plan_shards
from service.environment import read_settings
from service.errors import ServiceError
from service.http.body import form_value
from service.inference.prediction import task_prompts
from service.inference.request_fields import GenerationFields, parse_fields
from service.inference.served_models import ServedModel, load_served_models
from service.settings import PREFIX, Settings, SettingsError
from tasks.catalog import CatalogError, load_catalog
from tasks.errors import meant
from tasks.parameter_kinds import MAX_COORDINATE_PX
from wire.artifacts.manifest import ArtifactError
from wire.host import process_environment

if TYPE_CHECKING:
    from offline.pipeline import DoneShard

_REFUSALS = (InputError, ServiceError, SettingsError, CatalogError, ArtifactError)
_COCO_KINDS = ("detections", "instances")
# Settings of a server, or of models that are not used here.
_NOT_OFFLINE = {f"{PREFIX}{name}" for name in ("RUNNER_URLS", "DEVICES", "ADAPTERS")}


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse_arguments(arguments)
    os.environ.update(process_environment(os.environ))  # Ray's workers on this host inherit it
    try:
        for uri in given.inputs:
            if is_within(given.output, uri):
                raise InputError(
                    f"--output {given.output} is within the input {uri}; choose a folder beside it"
                )
        settings = settings_for(given.model)
        shards = plan_shards(given.inputs, given.column, given.shard_size)
        output = Output(given.output, job_of(given, settings, shards))
        done = output.begin()
    except _REFUSALS as error:
        print(f"python -m offline: {error}", file=sys.stderr)
        return 2
    remaining = [(index, shard) for index, shard in enumerate(shards) if index not in done]
    if remaining:
        _answer(given, output, settings, remaining)
    if given.format == "coco":
        write_coco(output)
    output.remove_incomplete()
    totals = output.totals()
    print(f"{totals.num_images} images in {given.output}; {totals.num_failed} failed")
    return 1 if totals.num_failed else 0


def _answer(
    given: argparse.Namespace, output: Output, settings: Settings, shards: list[tuple[int, Shard]]
) -> None:
    # takes seconds: not before a refusal
    from offline.pipeline import answer_shards, start_ray

    start_ray(given.address)
    counts = [shard.num_images for _, shard in shards]
    num_known = None if None in counts else sum(filter(None, counts))
    show_progress(answer_shards(output, shards, settings, given.actors), len(shards), num_known)


def show_progress(answered: "Iterable[DoneShard]", num_shards: int, num_images: int | None) -> None:
    """Consume `answered` with a progress bar; print how many images were answered in a second."""
    done: list[DoneShard] = []
    with tqdm(unit=" images") as bar:
        for shard in answered:
            done.append(shard)
            num_done = sum(each.num_images for each in done)
            num_failed = sum(each.num_failed for each in done)
            # archives have no index: an estimate from the shards done
            bar.total = num_done * num_shards // len(done) if num_images is None else num_images
            bar.set_postfix(failed=num_failed, shards=f"{len(done)}/{num_shards}", refresh=False)
            bar.update(shard.num_images)
    # without the start
    seconds = max(each.ended_s for each in done) - min(each.started_s for each in done)
    print(f"{num_done} images in {seconds:.2f} s, {num_done / seconds:.2f} images/s")


def settings_for(model_id: str) -> Settings:
    """Return the settings, of which the served models are `model_id` and the base of an adapter."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_OFFLINE}
    catalog = load_catalog(read_settings(environment | {f"{PREFIX}MODELS": model_id}).catalog)
    if model_id not in catalog:
        named = f"{model_id!r}{meant(model_id, catalog)}"
        raise InputError(f"unknown model {named}; the catalog has {', '.join(catalog)}")
    models = dict.fromkeys((catalog[model_id].adapter_of or model_id, model_id))
    return read_settings(environment | {f"{PREFIX}MODELS": ",".join(models)})


def job_of(given: argparse.Namespace, settings: Settings, shards: Sequence[Shard]) -> Job:
    """Return the job; raise an error if the model cannot do it, whatever the image."""
    model = load_served_models(settings)[given.model]
    if given.steps is None:
        fields = task_fields(given, model)
    elif given.field or given.format == "coco":
        given_too = "--field" if given.field else "--format coco"
        raise InputError(f"{given_too} needs --task; with --steps, fields are those of the steps")
    else:
        fields = {"steps": read_steps(given.steps, model.id)}
        check_steps(fields["steps"], model, settings)
    return Job(
        build=Build.of(model, fields, settings),
        fields=fields,
        output_format=given.format,
        shard_size=given.shard_size,
        num_shards=len(shards),
        images=digest_of(shards),
    )


def task_fields(given: argparse.Namespace, model: ServedModel) -> dict[str, Any]:
    """Return the fields of the task; raise an error if the model does not offer them."""
    texts = defaultdict[str, list[str]](list)  # a list's name is repeated
    for name, text in given.field:
        texts[name].append(text)
    fields: dict[str, Any] = {"task": given.task}
    for name, each in texts.items():
        fields[name] = form_value(name, each)
    is_coco = given.format == "coco"
    if is_coco:
        fields.setdefault("mask_format", "rle")
    _, request = parse_fields(GenerationFields, fields)
    has_masks = request.task.result_kind in _COCO_KINDS and request.fields.mask_format == "rle"
    if is_coco and not has_masks:
        raise InputError(
            "--format coco needs a task with boxes or masks, and mask_format=rle; choose parquet or"
            " jsonl"
        )
    task_prompts(model, request, (MAX_COORDINATE_PX, MAX_COORDINATE_PX))
    return fields


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    description = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m offline", description=description)
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="folder, pattern, image, .parquet or .tar; path or URI",
    )
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--task", help="task id")
    asked.add_argument("--steps", metavar="FILE", help="steps of an analysis; YAML or JSON")
    add("--model", required=True, help="model id of the catalog")
    add("--output", required=True, help="folder; path or URI. An output of the same job is resumed")
    add(
        "-F",
        "--field",
        action="append",
        default=[],
        type=_field,
        metavar="NAME=VALUE",
        help="field of /v1/predict; repeatable",
    )
    add("--format", choices=get_args(OutputFormat), default="parquet", help="default %(default)s")
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
