"""The command `annotate`: runs `diptych_client.annotate` and prints a summary."""

import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from diptych_client.annotate.consensus import AgreementRule, agree, write_consensus
from diptych_client.annotate.dataset_files import check_consensus, check_format, write_dataset
from diptych_client.annotate.job import Job, check_folders
from diptych_client.annotate.journal import Journal
from diptych_client.annotate.labelling import Labeller, label_images
from diptych_client.cli.options import (
    AnnotateOptions,
    ConnectionOptions,
    InputOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.cli.terminal import echo, logger, note_problems, run_with_progress
from diptych_client.inputs import ImageFile, open_images
from diptych_client.long_runs import FailureLog, RunError

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9.-]{,199}")  # model ids of the service's catalog


def annotate_images(
    connection: ConnectionOptions,
    inputs: Sequence[str],
    options: AnnotateOptions,
    input_options: InputOptions,
    task_options: TaskOptions,
) -> int:
    """Label the images and write the dataset; return the number of failed requests."""
    out = output_folder(options.out, inputs, "annotations")
    opening = input_options.opening(out)
    opened = open_images(inputs, opening)
    if Path(inputs[0]).is_dir():
        check_folders(opened.path, out)
    note_problems(opening.problems, out)
    store, images = opened.images()
    folder = store.path
    jobs = _jobs(connection, options, task_options, images)
    with ExitStack() as stack:
        journals = []
        for job in jobs:
            name = f"journal-{job.model}.jsonl" if options.consensus else "journal.jsonl"
            journals.append(stack.enter_context(Journal.open(out / name, job)))
        failures = stack.enter_context(FailureLog(out / "failures.jsonl"))
        for job, journal in zip(jobs, journals, strict=True):
            labeller = Labeller(folder, job, journal, failures)
            unlabelled = [image for image in images if not journal.has(image)]
            _label(connection, labeller, unlabelled, options.concurrency)
    labelled = images
    for journal in journals:
        labelled = [image for image in labelled if journal.has(image)]
    records = []
    for journal in journals:
        records.append([journal.records[image.name] for image in labelled])
    shown = ""
    place = (options.dataset_format, out, folder)
    if options.consensus:
        rule = AgreementRule(options.iou, options.accept_score)
        agreements = [agree(one, two, rule) for one, two in zip(*records, strict=True)]
        dataset = write_consensus(*place, agreements, jobs[0])
        num_differing = sum(bool(each.differing) for each in agreements)
        shown += f"{num_differing} images have boxes to review, see {out / 'review.json'}\n"
    else:
        dataset = write_dataset(*place, records[0], jobs[0])
    shown += f"{len(labelled)} of {len(images)} images are in {dataset}"
    result = {"dataset": str(dataset), "images": len(images), "labelled": len(labelled)}
    counts = {"failed": failures.num_failures, "left_out": dict(opening.problems.counts)}
    echo(json.dumps(result | counts) if input_options.as_json else shown)
    return failures.num_failures


def _jobs(
    connection: ConnectionOptions,
    options: AnnotateOptions,
    task_options: TaskOptions,
    images: Sequence[ImageFile],
) -> list[Job]:
    """Return a job for each model by its id: the service's default may change between runs.

    Raise `RunError` for a model id that would lead out of the folder as a journal's name.
    """
    with connection.client() as client:
        task = offered_task(client.tasks(), task_options.task)
    check_format(options.dataset_format, task.result, images)
    num_models = 2 if options.consensus else 1
    models = dict.fromkeys(listed(options.model) or task.models[:num_models])
    if options.consensus:
        check_consensus(options.dataset_format, task.result)
    if len(models) != num_models:
        needed = "two models with --consensus, else one"
        answered = f"{task.id} would be answered by {', '.join(models)}"
        raise RunError(f"--model must name {needed}; {answered}")
    jobs = []
    for model in models:
        if options.consensus and not _MODEL_ID.fullmatch(model):
            allowed = "lower-case letters, digits, dots and hyphens, at most 200"
            raise RunError(
                f"the model id {model!r:.200} cannot name a journal; it must have {allowed}, and"
                " begin with a letter or digit"
            )
        jobs.append(Job(task.id, model, task_options.parameters(), task_options.answer_options()))
    return jobs


def _label(
    connection: ConnectionOptions, labeller: Labeller, images: Sequence[ImageFile], concurrency: int
) -> None:
    start_s = time.monotonic()
    num_failed = labeller.failures.num_failures

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await label_images(client, labeller, images, concurrency, advance)

    run_with_progress(len(images), run)
    elapsed_s = time.monotonic() - start_s
    num_failed = labeller.failures.num_failures - num_failed
    summary = f"{len(images)} images in {elapsed_s:.1f} s, {len(images) / elapsed_s:.1f} images/s"
    hint = f", see {labeller.failures.path}" if num_failed else ""
    logger.info("%s; %d failed%s", summary, num_failed, hint)
