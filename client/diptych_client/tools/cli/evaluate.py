"""The commands `evaluate`, which asks the models and writes a report, and `check`: its plan alone.

prompts-MODEL.yaml has the names by which a model was asked, for --prompts, if not as written.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from diptych_client.datasets.dataset import Dataset, LabelledImage
from diptych_client.datasets.formats.reading import read_dataset, with_files
from diptych_client.datasets.inputs import Folder, ImageStore, Opening, escaped, open_images
from diptych_client.datasets.long_runs import FailureLog, Outputs, RunError
from diptych_client.requests import DEFAULT_OPTIONS, TaskParameters, non_null_fields
from diptych_client.results import Model
from diptych_client.tools import review
from diptych_client.tools.cli.answers import collect_answers
from diptych_client.tools.cli.options import (
    ConnectionOptions,
    DatasetOptions,
    InputOptions,
    ReportOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.tools.cli.terminal import echo, logger, note_problems, table_view
from diptych_client.tools.evaluator import (
    Evaluation,
    Evaluator,
    are_numbers,
    best_form,
    drawn,
    run_record,
    trial_of,
)
from diptych_client.tools.objects import ObjectsMeasure, fit_calibration
from diptych_client.tools.questions import (
    AnswerLog,
    Collector,
    ObjectsTruth,
    Questionnaire,
    Sample,
    of_task,
    read_prompts,
)
from diptych_client.tools.report import Gallery, report_files, tables, write_report

_MAX_LISTED = 40  # classes of a plan
_MAX_NAMES = 5  # that a line lists


def read_input(inputs: Sequence[str], options: DatasetOptions, opening: Opening) -> Dataset:
    opened = open_images(inputs, opening)
    if opened.files is None:
        dataset = read_dataset(opened.path, options.images, options.split, opening.problems)
    else:
        store, files = opened.images()
        dataset = Dataset(list(map(LabelledImage, files)), store)
        dataset = with_files(Path(inputs[0]), dataset, opening.problems)
    parts = (escaped(Path(inputs[0]).resolve().name), options.split)
    return replace(dataset, name=" ".join(filter(None, parts)))


def plan_lines(
    dataset: Dataset, questionnaire: Questionnaire, samples: Sequence[Sample]
) -> Iterator[str]:
    """Yield what is read of a dataset and, with a task, what each model is asked about it."""
    title = f"{dataset.name}: {dataset.format or 'images'}, {len(dataset.images)} images"
    if dataset.splits:
        title += f", split {dataset.split or 'all'} of {', '.join(dataset.splits)}"
    yield title
    classes = Counter(dict.fromkeys(dataset.classes, 0))
    for labelled in dataset.images:
        classes.update(map(attrgetter("label"), labelled.objects or ()))
    yield f"labels: {_counts(dataset.labels)}"
    yield f"classes: {_counts(classes)}"
    if questionnaire.merged:
        yield f"counted as one class: {_pairs(questionnaire.merged)}"
    yield f"ignored: {_counts(dataset.ignored)}"
    yield from filter(None, [dataset.note])
    if questionnaire.task:
        yield f"{questionnaire.task}: {_num_requests(samples)} requests to each model"
        first = (*samples[0].requests, TaskParameters())[0]
        for name, value in non_null_fields(first, DEFAULT_OPTIONS).items():
            text = ", ".join(map(str, value)) if isinstance(value, tuple) else value
            yield f"asked with {name}: {text}"
    forms = questionnaire.forms()[1:]
    if num_trials := len(forms) * _num_requests(trial_of(samples)):
        yield from map("or: {}".format, map(_pairs, forms))
        yield f"up to {num_trials} requests more to each model choose its names"
    if are_numbers(questionnaire.names):
        yield "the classes are numbers: --prompts names them, else there is no verdict"


def _counts(counts: Mapping[str, int]) -> str:
    texts = [f"{name} {count}" for name, count in Counter(counts).most_common(_MAX_LISTED)]
    if len(counts) > _MAX_LISTED:
        texts.append(f"{len(counts) - _MAX_LISTED} others")
    return ", ".join(texts) or "none"


def _num_requests(samples: Iterable[Sample]) -> int:
    return sum(map(len, map(attrgetter("requests"), samples)))


def _pairs(names: Mapping[str, str]) -> str:
    """Return the first pairs as words; keys: labels, values: what stands for them."""
    pairs = [f"{label} as {name}" for label, name in names.items()]
    return ", ".join(pairs[:_MAX_NAMES]) + (" …" if len(pairs) > _MAX_NAMES else "")


@dataclass(slots=True)
class Plan:
    """The models, the samples and the questions of a run, and its findings."""

    models: Mapping[str, Model]  # keyed by id
    dataset: Dataset
    questionnaire: Questionnaire
    samples: list[Sample]
    ignored: Mapping[str, int]
    findings: dict[str, str] = field(default_factory=dict)  # for the record


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """One run of the command."""

    connection: ConnectionOptions
    inputs: Sequence[str]
    options: ReportOptions
    dataset_options: DatasetOptions
    input_options: InputOptions
    task_options: TaskOptions
    calibration: Path | None = None  # file for fitted probabilities of scores
    is_review: bool = False

    def run(self) -> int:
        """Evaluate the models, write the report and return the number of failed requests."""
        out = output_folder(self.options.out, self.inputs, self.task_options.task)
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(out, self.input_options.overwrite))
            outputs.check([*report_files(out), *filter(None, [self.calibration])])
            outputs.check(map(out.joinpath, review.FILES if self.is_review else ()))
            plan = self._plan(outputs)
            collector = self._collector(stack, outputs, plan.dataset.store)
            self._choose_forms(plan, collector, outputs)
            for name in plan.models:
                collect_answers(self.connection, collector, plan.samples, name)
            self._report(plan, collector, outputs)
        return collector.failures.num_failures

    def _plan(self, outputs: Outputs) -> Plan:
        models = self._models()
        opening = self.input_options.opening(outputs.folder)
        task = self.task_options.task
        dataset = of_task(read_input(self.inputs, self.dataset_options, opening), task)
        images = drawn(dataset.images, self.options.sample, self.task_options.seed or 0)
        dataset = replace(dataset, images=images)
        note_problems(opening.problems, outputs)
        prompts = read_prompts(self.dataset_options.prompts)
        questionnaire = Questionnaire(
            task, self.task_options.parameters(), prompts, dataset.classes
        )
        samples = list(questionnaire.samples(dataset))
        for line in plan_lines(dataset, questionnaire, samples):
            logger.info(line)
        truths = map(attrgetter("truth"), samples)
        if self.is_review and not any(isinstance(truth, ObjectsTruth) for truth in truths):
            raise RunError(f"review needs labelled objects; {task} on {dataset.name} has none")
        ignored = {**opening.problems.counts, **dataset.ignored}
        plan = Plan(models, dataset, questionnaire, samples, ignored)
        if questionnaire.merged:
            plan.findings["counted as one class"] = _pairs(questionnaire.merged)
        return plan

    def _collector(self, stack: ExitStack, outputs: Outputs, store: ImageStore) -> Collector:
        out = outputs.folder
        has_embeddings = True if self.calibration else None
        options = replace(self.task_options.answer_options(), image_embedding=has_embeddings)
        log = AnswerLog.open(out / "answers.jsonl", self.task_options.task, options)
        answers = stack.enter_context(log)
        failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
        return Collector(answers, failures, store, self.options.concurrency)

    def _choose_forms(self, plan: Plan, collector: Collector, outputs: Outputs) -> None:
        """Ask the models in all forms; leave the best ones in the log, and in files of prompts."""
        forms = plan.questionnaire.forms()
        trial = trial_of(plan.samples) if len(forms) > 1 else []
        for name in plan.models if trial else ():
            for form in forms:
                collector.log.forms[name] = form
                collect_answers(self.connection, collector, trial, name)
            form = best_form(collector.log, trial, name, plan.questionnaire.names, forms)
            collector.log.forms[name] = form
            path = outputs.folder / re.sub(r"[^\w.-]+", "-", f"prompts-{name}.yaml")
            outputs.write(path, yaml.safe_dump(plan.questionnaire.in_form(form)))
            choice = _pairs(form) or "names as written"
            plan.findings[f"{name} is asked"] = choice
            logger.info("%s is asked %s; see %s", name, choice, path)

    def _report(self, plan: Plan, collector: Collector, outputs: Outputs) -> None:
        evaluator = Evaluator(collector.log, tuple(plan.models), plan.questionnaire.names)
        evaluation = self._evaluation(plan, evaluator, collector.failures)
        if self.is_review:
            reviewer = review.Reviewer(evaluator, plan.samples, plan.dataset.images)
            ranked = reviewer.write(outputs, self.options.gallery)
            logger.info("what to review: %s in %s", ", ".join(review.FILES), outputs.folder)
            evaluation = replace(evaluation, gallery=ranked)
        gallery = Gallery(plan.dataset.store, evaluator, plan.samples)
        document = write_report(outputs, evaluation, gallery)
        document["report"] = str(report_files(outputs.folder)[0])
        print_conclusions(evaluation, document, collector.failures, self.input_options.as_json)
        if self.calibration is not None:
            self._calibrate(outputs, self.calibration, plan.models.values(), evaluator)

    def _evaluation(self, plan: Plan, evaluator: Evaluator, failures: FailureLog) -> Evaluation:
        seed = self.task_options.seed or 0
        gallery = self.options.gallery
        evaluation = evaluator.evaluate(plan.dataset.name, plan.samples, seed, gallery)
        for name, number in evaluator.num_unfamiliar.items():
            share = f"{number} of {evaluation.num_samples} samples"
            plan.findings[f"{name}: unlike its calibration"] = share
            logger.warning("%s: %s are unlike the images of its calibration", name, share)
        options = self.task_options.answer_options()
        settings = {
            **non_null_fields(self.task_options.parameters(), options),
            "prompts": str(self.dataset_options.prompts or ""),
            "split": self.dataset_options.split or "",
            "sample": self.options.sample or "",
            **plan.findings,
        }
        counts = {"requests failed": failures.num_failures, **plan.ignored}
        record = run_record(self.connection.url, settings, plan.models.values(), counts)
        return replace(evaluation, run=record)

    def merge(self, export: Path) -> None:
        """Write the dataset with the labels of the images that a person reviewed."""
        out = output_folder(self.options.out, self.inputs, "merged")
        opening = self.input_options.opening(out)
        dataset = read_input(self.inputs, self.dataset_options, opening)
        if not isinstance(dataset.store, Folder):
            raise RunError(f"--merge needs images that are files; {dataset.name} is one file")
        options = DatasetOptions(images=dataset.store.path)
        reviewed = read_input([str(export)], options, replace(opening, work=out / "reviewed"))
        images, num_changed = review.merge_labels(dataset, reviewed)
        with Outputs(out, self.input_options.overwrite) as outputs:
            note_problems(opening.problems, outputs)
            lines = "".join(json.dumps(review.to_row(labelled)) + "\n" for labelled in images)
            path = outputs.write(out / "merged.jsonl", lines)
        summary = {"merged": str(path), "images": len(images), "changed": num_changed}
        sentence = f"{num_changed} of {len(images)} images have other labels in {path}"
        num_emptied = 0
        for before, labelled in zip(dataset.images, images, strict=True):
            num_emptied += bool(before.objects) and not labelled.objects
        if num_emptied:
            sentence += f"; {num_emptied} of them have no labels any more"
        echo(json.dumps(summary) if self.input_options.as_json else sentence)

    def _models(self) -> dict[str, Model]:
        with self.connection.client() as client:
            task = offered_task(client.tasks(), self.task_options)
            served = {model.id: model for model in client.models()}
        names = listed(self.options.models) or task.models
        if missing := [name for name in names if name not in task.models]:
            offered = ", ".join(task.models)
            raise RunError(f"{', '.join(missing)} does not offer {task.id}; offered by {offered}")
        return {name: served[name] for name in names}

    def _calibrate(
        self, outputs: Outputs, path: Path, models: Iterable[Model], evaluator: Evaluator
    ) -> None:
        calibrations = []
        task = self.task_options.task
        with_tiles = self.task_options.tiles not in (None, "off")
        for model in models:
            measure = evaluator.measures.get(model.id)
            scored = measure.scored() if isinstance(measure, ObjectsMeasure) else None
            calibrations.append(fit_calibration(model, task, scored, with_tiles))
            if scored is not None and scored.num_unscored:
                count = f"{scored.num_unscored} objects without a score"
                logger.warning("%s: %s are left out of the calibration", model.id, count)
        outputs.write(path, json.dumps({"calibrations": calibrations}, indent=1) + "\n")
        logger.info("the calibration is %s", path)


def print_conclusions(
    evaluation: Evaluation, document: Mapping[str, Any], failures: FailureLog, as_json: bool
) -> None:
    if as_json:
        echo(json.dumps(document))
        return
    for sentence in document["sentences"]:
        echo(sentence)
    if len(evaluation.models) == 1:
        for table in tables(evaluation):
            if table.title in ("Metrics", "AP by class"):
                Console().print(table_view(table.header, table.rows))
    hint = ""
    if failures.num_failures:
        hint = f"; {failures.num_failures} requests failed, see {failures.path}"
    count = f"{evaluation.num_samples} samples of {evaluation.num_images} images"
    echo(f"{count} answered by every model{hint}")
    echo(f"the report is {document['report']}")
