"""The command `annotate`: labels a folder with one model, or two that must agree."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from diptych_client.datasets.formats.writing import (
    Target,
    check_format,
    check_outputs,
    writable_images,
    write_dataset,
)
from diptych_client.datasets.inputs import Folder, ImageFile, ImageStore, Problems, open_images
from diptych_client.datasets.long_runs import FailureLog, Outputs, RunError
from diptych_client.datasets.records import Job, Record
from diptych_client.tools.cli.options import (
    NO_GUARANTEE,
    AnnotateOptions,
    ConnectionOptions,
    GuaranteeOptions,
    InputOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.tools.cli.terminal import echo, note_problems, run_with_progress
from diptych_client.tools.consensus import ANY, Records, agreement, write_consensus
from diptych_client.tools.questions import AnswerLog, Asker, Sample


def ask(connection: ConnectionOptions, asker: Asker, samples: Sequence[Sample], model: str) -> None:
    """Send the requests that have no answer yet, with a progress bar."""
    num_requests = sum(1 for _ in asker.log.unanswered(samples, model))
    if not num_requests:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await asker.ask(client, asker.log.unanswered(samples, model), advance)

    run_with_progress(num_requests, run, model)


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers of the models to images; those of `folder` are kept in `out`."""

    connection: ConnectionOptions
    jobs: Sequence[Job]
    failures: FailureLog
    concurrency: int
    folder: Folder
    out: Path

    def to(self, store: ImageStore, images: Iterable[ImageFile]) -> list[Records]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        # equal names of two folders are not one image
        path = (self.out if store == self.folder else self.out / "labelled") / "journal.jsonl"
        first = self.jobs[0]
        samples = [Sample(image, (first.parameters,), None) for image in images]
        complete = []
        with AnswerLog.open(path, first.task, first.options) as log:
            asker = Asker(log, self.failures, store, self.concurrency)
            for job in self.jobs:
                ask(self.connection, asker, samples, job.model)
            for sample in samples:
                records = []
                for job in self.jobs:
                    for answer in log.answers(sample, job.model) or ():
                        records.append(Record(sample.image, answer))
                if len(records) == len(self.jobs):
                    complete.append(tuple(records))
        return complete


@dataclass(frozen=True, slots=True)
class AnnotationRun:
    """One run of the command."""

    connection: ConnectionOptions
    inputs: Sequence[str]
    options: AnnotateOptions
    input_options: InputOptions
    task_options: TaskOptions
    guarantee: GuaranteeOptions = NO_GUARANTEE

    def run(self) -> int:
        """Label the images and write the dataset; return the number of failed requests."""
        self._check_options()
        options = self.options
        out = output_folder(options.out, self.inputs, "annotations")
        opening = self.input_options.opening(out)
        folder, images = open_images(self.inputs, opening).images(opening.problems)
        images = writable_images(options.dataset_format, images, opening.problems)
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(out, self.input_options.overwrite))
            check_outputs(options.dataset_format, outputs, folder.path, images)
            outputs.check(filter(None, [self.guarantee.thresholds]))
            jobs = self._jobs(images)
            form = options.dataset_format
            target = Target(form, outputs, folder.path, jobs[0], options.val_share)
            out.mkdir(parents=True, exist_ok=True)
            failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
            answers = Answers(self.connection, jobs, failures, options.concurrency, folder, out)
            num_labelled, dataset, notes = self._label(target, answers, images, opening.problems)
        notes.append(f"{num_labelled} of {len(images)} images have answers; see {dataset}")
        if failures.num_failures:
            notes.append(f"{failures.num_failures} requests failed, see {failures.path}")
        summary = {
            "dataset": str(dataset),
            "images": len(images),
            "labelled": num_labelled,
            "failed": failures.num_failures,
            "left_out": dict(opening.problems.counts),
        }
        echo(json.dumps(summary) if self.input_options.as_json else "\n".join(notes))
        return failures.num_failures

    def _label(
        self, target: Target, answers: Answers, images: Sequence[ImageFile], problems: Problems
    ) -> tuple[int, Path, list[str]]:
        """Return the number of labelled images, the path of the dataset, and notes about it."""
        if self.guarantee.labelled is not None:
            from diptych_client.tools.cli.guaranteed import GuaranteedRun

            iou = self.options.iou
            run = GuaranteedRun(answers, target, images, self.guarantee, iou, problems)
            num_labelled, dataset = run.label()
            return num_labelled, dataset, run.sentences
        note_problems(problems, target.outputs)
        records = answers.to(answers.folder, images)
        # an earlier run may have left it: it is not true of this dataset
        target.outputs.remove(target.outputs.folder / "guarantee.json")
        if not self.options.consensus:
            return len(records), write_dataset(target, list(map(itemgetter(0), records))), []
        leasts = {ANY: self.options.accept_score}
        agreements = [agreement(answered, self.options.iou, leasts) for answered in records]
        num_labels = sum(len(image.accepted) for image in agreements)
        dataset, note = write_consensus(target, agreements)
        warning = (
            f"{num_labels} labels have two models' consent, which proves nothing: both may err"
            " alike; --labelled proves a share of errors"
        )
        return len(records), dataset, [note, warning]

    def _check_options(self) -> None:
        if self.guarantee.labelled is None:
            if replace(self.guarantee, confidence=NO_GUARANTEE.confidence) != NO_GUARANTEE:
                names = "--max-wrong, --per-class, --thresholds and --split"
                raise RunError(f"{names} need --labelled: images with true labels")
            return
        if self.options.accept_score or self.task_options.min_precision:
            hint = "omit accept_score and min_precision"
            raise RunError(f"--labelled chooses the least score itself: {hint}")
        if self.guarantee.thresholds is not None and self.options.consensus:
            raise RunError("--thresholds is of one model, which the service asks: omit --consensus")
        if self.guarantee.thresholds is not None and self.guarantee.per_class:
            raise RunError("--thresholds has one score for all classes: omit --per-class")

    def _jobs(self, images: Sequence[ImageFile]) -> list[Job]:
        """Return a job for each model by its id: the service's default may change between runs."""
        with self.connection.client() as client:
            task = offered_task(client.tasks(), self.task_options)
        options = self.options
        is_reviewed = options.consensus or self.guarantee.labelled is not None
        check_format(options.dataset_format, task.result, images, is_reviewed)
        num_models = 2 if options.consensus else 1
        models = dict.fromkeys(listed(options.model) or task.models[:num_models])
        if len(models) != num_models:
            rule = "--model must name two models with --consensus, else one"
            raise RunError(f"{rule}; {task.id} would be answered by {', '.join(models)}")
        parameters = self.task_options.parameters()
        answer_options = self.task_options.answer_options()
        return [Job(task.id, model, parameters, answer_options) for model in models]
