"""The command `annotate`: labels a folder with one model, or two that must agree."""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from diptych_client.cli.options import (
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
from diptych_client.cli.terminal import echo, note_problems, run_with_progress
from diptych_client.evaluation.annotation.consensus import ANY, Records, agreement, write_consensus
from diptych_client.evaluation.formats.writing import (
    Target,
    check_format,
    check_outputs,
    write_dataset,
)
from diptych_client.evaluation.questions import AnswerLog, Asker, Job, Record, Sample
from diptych_client.inputs import ImageFile, ImageStore, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError


def ask(
    connection: ConnectionOptions,
    asker: Asker,
    store: ImageStore,
    samples: Sequence[Sample],
    model: str,
) -> None:
    """Send the requests that have no answer yet."""
    num_unanswered = sum(1 for _ in asker.log.unanswered(samples, model))
    if not num_unanswered:
        return

    async def run(advance: Callable[[], None]) -> None:
        async with connection.async_client() as client:
            await asker.ask(client, store, samples, model, advance)

    run_with_progress(num_unanswered, run, model)


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
        out = output_folder(self.options.out, self.inputs, "annotations")
        opening = self.input_options.opening(out)
        opened = open_images(self.inputs, opening)
        store, images = opened.images(opening.problems)
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(out, self.input_options.overwrite))
            dataset_format = self.options.dataset_format
            check_outputs(dataset_format, outputs, store.path, images)
            outputs.check(filter(None, [self.guarantee.thresholds]))
            if self.guarantee.labelled is None:
                note_problems(opening.problems, outputs)
            jobs = self._jobs(images)
            target = Target(dataset_format, outputs, store.path, jobs[0], self.options.val_share)
            out.mkdir(parents=True, exist_ok=True)
            failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))

            def answer(place: ImageStore, images: Iterable[ImageFile]) -> list[Records]:
                # equal names of two folders are not one image
                path = (out if place == store else out / "labelled") / "journal.jsonl"
                with AnswerLog.open(path, jobs[0].task, jobs[0].options) as log:
                    asker = Asker(log, failures, self.options.concurrency)
                    return self._answers(asker, jobs, place, images)

            if self.guarantee.labelled is None:
                answers = answer(store, images)
                dataset, notes = self._write(target, answers)
            else:
                from diptych_client.cli.guaranteed import GuaranteedRun

                run = GuaranteedRun(
                    answer,
                    target,
                    store,
                    images,
                    self.guarantee,
                    self.options.iou,
                    opening.problems,
                )
                answers, dataset = run.label(self.connection.models)
                notes = run.sentences
        notes.append(f"{len(answers)} of {len(images)} images have answers; see {dataset}")
        if failures.num_failures:
            notes.append(f"{failures.num_failures} requests failed, see {failures.path}")
        summary = {
            "dataset": str(dataset),
            "images": len(images),
            "labelled": len(answers),
            "failed": failures.num_failures,
            "left_out": dict(opening.problems.counts),
        }
        echo(json.dumps(summary) if self.input_options.as_json else "\n".join(notes))
        return failures.num_failures

    def _check_options(self) -> None:
        if self.guarantee.labelled is None:
            if replace(self.guarantee, confidence=NO_GUARANTEE.confidence) != NO_GUARANTEE:
                names = "--max-wrong, --max-missed, --per-class, --thresholds, --split, --suggest"
                raise RunError(f"{names} and --reviewed need --labelled: images with true labels")
            return
        if self.options.accept_score or self.task_options.min_precision:
            hint = "omit --accept-score and --min-precision"
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

    def _answers(
        self, asker: Asker, jobs: Sequence[Job], store: ImageStore, images: Iterable[ImageFile]
    ) -> list[Records]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        samples = [Sample(image, (jobs[0].parameters,), None) for image in images]
        for job in jobs:
            ask(self.connection, asker, store, samples, job.model)
        complete = []
        for sample in samples:
            records = []
            for job in jobs:
                for answer in asker.log.answers(sample, job.model) or ():
                    records.append(Record(sample.image, answer))
            if len(records) == len(jobs):
                complete.append(tuple(records))
        return complete

    def _write(self, target: Target, answers: Sequence[Records]) -> tuple[Path, list[str]]:
        # an earlier run may have left it: it is not true of this dataset
        target.outputs.remove(target.outputs.folder / "guarantee.json")
        if not self.options.consensus:
            return write_dataset(target, list(map(itemgetter(0), answers))), []
        leasts = {ANY: self.options.accept_score}
        agreements = [agreement(records, self.options.iou, leasts) for records in answers]
        num_labels = sum(len(image.accepted) for image in agreements)
        dataset, note = write_consensus(target, agreements)
        warning = (
            f"{num_labels} labels have two models' consent, which proves nothing: both may err"
        )
        return dataset, [note, f"{warning} alike; --labelled proves a share of errors"]
