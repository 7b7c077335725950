"""The command `annotate`: labels a folder with one model, or two that must agree."""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from diptych_client.cli.options import (
    NO_GUARANTEE,
    AnnotateOptions,
    ConnectionOptions,
    GuaranteeOptions,
    InputOptions,
    TaskOptions,
    check_folders,
    listed,
    missing_extra,
    offered_task,
    output_folder,
)
from diptych_client.cli.terminal import echo, logger, note_problems, run_with_progress
from diptych_client.evaluation.annotation.consensus import Records, agreement, write_consensus
from diptych_client.evaluation.formats.writing import check_format, check_outputs, write_dataset
from diptych_client.evaluation.job import Job, Journal, Record, ask
from diptych_client.inputs import Folder, ImageFile, ImageStore, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError
from diptych_client.results import Answer

_MODEL_ID = re.compile(r"[a-z0-9][a-z0-9.-]{,199}")  # model ids of the service's catalog


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
        if Path(self.inputs[0]).is_dir():
            check_folders(opened.path, out)
        store, images = opened.images()
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(out, self.input_options.overwrite))
            check_outputs(outputs, store.path, images)
            outputs.check(filter(None, [self.guarantee.thresholds]))
            note_problems(opening.problems, outputs)
            jobs = self._jobs(images)
            out.mkdir(parents=True, exist_ok=True)
            failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
            answer = partial(self._answers, jobs, failures)
            if self.guarantee.labelled is None:
                answers = answer(out, store, images)
                dataset, notes = self._write(outputs, store.path, answers, jobs[0])
            else:
                answers, dataset, notes = self._prove(answer, outputs, store, images, jobs[0])
        notes.append(f"{len(answers)} of {len(images)} images are in {dataset}")
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
                names = "--max-wrong, --max-missed, --thresholds, --suggest and --reviewed"
                raise RunError(f"{names} need --labelled: images with true labels")
            return
        if self.options.accept_score or self.task_options.min_precision:
            hint = "omit --accept-score and --min-precision"
            raise RunError(f"--labelled chooses the least score itself: {hint}")
        if self.guarantee.thresholds is not None and self.options.consensus:
            raise RunError("--thresholds is of one model, which the service asks: omit --consensus")

    def _jobs(self, images: Sequence[ImageFile]) -> list[Job]:
        """Return a job for each model by its id: the service's default may change between runs.

        Raise `RunError` for a model id that would lead out of the folder as a journal's name.
        """
        with self.connection.client() as client:
            task = offered_task(client.tasks(), self.task_options.task)
        options = self.options
        is_proved = self.guarantee.labelled is not None
        check_format(options.dataset_format, task.result, images, options.consensus, is_proved)
        if self.guarantee.thresholds is not None and task.result == "text":
            rule = "--thresholds needs scores"
            raise RunError(f"{rule}, which the task's result, a text, does not have")
        num_models = 2 if options.consensus else 1
        models = dict.fromkeys(listed(options.model) or task.models[:num_models])
        if len(models) != num_models:
            rule = "--model must name two models with --consensus, else one"
            raise RunError(f"{rule}; {task.id} would be answered by {', '.join(models)}")
        jobs = []
        for model in models:
            if options.consensus and not _MODEL_ID.fullmatch(model):
                allowed = "lower-case letters, digits, dots and hyphens, at most 200"
                raise RunError(
                    f"the model id {model!r:.200} cannot name a journal; it must have {allowed},"
                    " and begin with a letter or digit"
                )
            parameters = self.task_options.parameters()
            jobs.append(Job(task.id, model, parameters, self.task_options.answer_options()))
        return jobs

    def _answers(
        self,
        jobs: Sequence[Job],
        failures: FailureLog,
        out: Path,
        store: ImageStore,
        images: Iterable[ImageFile],
    ) -> list[Records]:
        """Return the records of each image that every model answered, now or in an earlier run."""
        by_name: dict[str, list[Record]] = {image.name: [] for image in images}
        for job in jobs:
            name = f"journal-{job.model}.jsonl" if len(jobs) > 1 else "journal.jsonl"
            with Journal.open(out / name, job) as journal:
                unlabelled = [(image, job) for image in images if not journal.has(image)]
                if unlabelled:
                    self._ask(store, unlabelled, journal, failures)
                for image in images:
                    if journal.has(image):
                        by_name[image.name].append(journal.records[image.name])
        complete = [records for records in by_name.values() if len(records) == len(jobs)]
        return list(map(tuple, complete))

    def _ask(
        self,
        store: ImageStore,
        unlabelled: Sequence[tuple[ImageFile, Job]],
        journal: Journal,
        failures: FailureLog,
    ) -> None:
        num_earlier = failures.num_failures

        def record(image: ImageFile, _job: Job, answer: Answer, _latency_s: float) -> None:
            journal.append(Record(image, answer))

        async def run(advance: Callable[[], None]) -> None:
            concurrency = self.options.concurrency
            async with self.connection.async_client() as client:
                await ask(client, store, unlabelled, record, failures, concurrency, advance)

        start_s = time.monotonic()
        run_with_progress(len(unlabelled), run)
        elapsed_s = time.monotonic() - start_s
        num_failed = failures.num_failures - num_earlier
        count = len(unlabelled)
        rate = f"{count} images in {elapsed_s:.1f} s, {count / elapsed_s:.1f} images/s"
        hint = f", see {failures.path}" if num_failed else ""
        logger.info("%s; %d failed%s", rate, num_failed, hint)

    def _prove(
        self,
        answer: Callable[[Path, ImageStore, Iterable[ImageFile]], list[Records]],
        outputs: Outputs,
        store: Folder,
        images: Sequence[ImageFile],
        job: Job,
    ) -> tuple[list[Records], Path, list[str]]:
        try:
            from diptych_client.cli.guaranteed import GuaranteedRun, promises_of
        except ImportError as error:
            raise missing_extra("annotate --labelled", error, "evaluate") from error
        promises = promises_of(self.guarantee, self.options.iou)
        dataset_format = self.options.dataset_format
        run = GuaranteedRun(answer, outputs, store, images, job, promises, dataset_format)
        answers, dataset = run.label(self.guarantee, self.connection.models)
        return answers, dataset, run.sentences

    def _write(
        self, outputs: Outputs, folder: Path, answers: Sequence[Records], job: Job
    ) -> tuple[Path, list[str]]:
        dataset_format = self.options.dataset_format
        if not self.options.consensus:
            accepted = [records[0] for records in answers]
            return write_dataset(dataset_format, outputs, folder, accepted, job), []
        agreements = []
        for records in answers:
            agreements.append(agreement(records, self.options.iou, self.options.accept_score))
        num_differing = sum(bool(image.differing) for image in agreements)
        dataset, review = write_consensus(dataset_format, outputs, folder, agreements, job)
        return dataset, [f"{num_differing} images have boxes to review, see {review}"]
