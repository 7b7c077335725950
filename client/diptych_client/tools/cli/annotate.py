"""The command `annotate`: labels a folder with one model, or two that must agree."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from diptych_client.datasets.formats.writing import (
    Target,
    check_format,
    check_outputs,
    writable_images,
    write_dataset,
)
from diptych_client.datasets.inputs import ImageFile, Problems, open_images
from diptych_client.datasets.long_runs import FailureLog, Outputs, RunError
from diptych_client.datasets.records import Job
from diptych_client.tools.cli.answers import JobRunner
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
from diptych_client.tools.cli.terminal import echo, note_problems
from diptych_client.tools.consensus import ANY, find_agreement, write_consensus


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
            if self.guarantee.thresholds is not None:
                outputs.check([self.guarantee.thresholds])
            jobs = self._jobs(images)
            target = Target(
                options.dataset_format, outputs, folder.path, jobs[0], options.val_share
            )
            out.mkdir(parents=True, exist_ok=True)
            failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
            runner = JobRunner(self.connection, jobs, failures, options.concurrency, folder, out)
            num_labelled, dataset, notes = self._label(target, runner, images, opening.problems)
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
        self, target: Target, runner: JobRunner, images: Sequence[ImageFile], problems: Problems
    ) -> tuple[int, Path, list[str]]:
        """Return the number of labelled images, the path of the dataset, and notes about it."""
        if self.guarantee.labelled is not None:
            from diptych_client.tools.cli.guaranteed import GuaranteedRun

            iou = self.options.iou
            run = GuaranteedRun(runner, target, images, self.guarantee, iou, problems)
            num_labelled, dataset = run.label()
            return num_labelled, dataset, run.sentences
        note_problems(problems, target.outputs)
        records = runner.run(runner.folder, images)
        # an earlier run may have left it: it is not true of this dataset
        target.outputs.remove(target.outputs.folder / "guarantee.json")
        if not self.options.consensus:
            dataset = write_dataset(target, [answered[0] for answered in records])
            return len(records), dataset, []
        min_scores = {ANY: self.options.accept_score}
        agreements = [
            find_agreement(answered, self.options.iou, min_scores) for answered in records
        ]
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
