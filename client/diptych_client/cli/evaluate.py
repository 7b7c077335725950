"""The command `evaluate`: asks the models, writes the report and prints its conclusions."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from diptych_client.cli.annotate import ask
from diptych_client.cli.options import (
    ConnectionOptions,
    EvaluateOptions,
    InputOptions,
    TaskOptions,
    listed,
    offered_task,
    output_folder,
)
from diptych_client.cli.terminal import echo, logger, note_problems, run_with_progress, table_view
from diptych_client.evaluation.dataset import Dataset, LabelledImage
from diptych_client.evaluation.evaluator import Evaluation, Evaluator, Race, drawn, run_record
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.objects import ObjectsMeasure, fit_calibration
from diptych_client.evaluation.questions import (
    WITHOUT_TILES,
    AnswerLog,
    Asker,
    Questionnaire,
    Sample,
    read_prompts,
)
from diptych_client.evaluation.report import Gallery, report_files, tables, write_report
from diptych_client.inputs import Opening, open_images
from diptych_client.long_runs import FailureLog, Outputs, RunError
from diptych_client.requests import non_null_fields
from diptych_client.results import Model


@dataclass(frozen=True, slots=True)
class EvaluationRun:
    """One run of the command."""

    connection: ConnectionOptions
    inputs: Sequence[str]
    options: EvaluateOptions
    input_options: InputOptions
    task_options: TaskOptions

    def run(self) -> int:
        """Evaluate the models, write the report and return the number of failed requests."""
        task = self.task_options.task
        seed = self.task_options.seed or 0
        out = output_folder(self.options.out, self.inputs, task)
        with ExitStack() as stack:
            outputs = stack.enter_context(Outputs(out, self.input_options.overwrite))
            outputs.check([*report_files(out), *filter(None, [self.options.calibrate])])
            models = self._models()
            names = self._names(models)
            opening = self.input_options.opening(out)
            dataset = self._dataset(opening, seed)
            note_problems(opening.problems, outputs)
            if dataset.note:
                logger.warning(dataset.note)
            path = self.options.prompts
            prompts = {} if path is None else read_prompts(path)
            parameters = self.task_options.parameters()
            questionnaire = Questionnaire(task, parameters, prompts, dataset.classes)
            samples = list(questionnaire.samples(dataset))
            options = self.task_options.answer_options()
            log = stack.enter_context(AnswerLog.open(out / "answers.jsonl", task, options))
            failures = stack.enter_context(FailureLog(outputs.claim(out / "failures.jsonl")))
            asker = Asker(log, failures, self.options.concurrency)
            verdict = ""
            if self.options.until_decided:
                race = Race(
                    asker, dataset.store, names, questionnaire.names, self.options.equal_within
                )
                samples, verdict = self._race(race, samples)
            else:
                for name in names:
                    ask(self.connection, asker, dataset.store, samples, name)
            evaluator = Evaluator(log, names, questionnaire.names)
            evaluation = evaluator.evaluate(dataset.name, samples, seed, self.options.gallery)
            settings = {
                **non_null_fields(parameters, options),
                "prompts": str(path or ""),
                "split": self.options.split or "",
                "sample": self.options.sample or "",
                "decided": verdict,
            }
            counts = {"requests failed": failures.num_failures, **opening.problems.counts}
            record = run_record(self.connection.url, settings, models, counts)
            evaluation = replace(evaluation, run=record)
            gallery = Gallery(dataset.store, evaluator, samples)
            document = write_report(outputs, evaluation, gallery)
            document |= {"report": str(report_files(out)[0]), "decided": verdict}
            if self.input_options.as_json:
                echo(json.dumps(document))
            else:
                print_conclusions(evaluation, document, failures)
            if self.options.calibrate is not None:
                self._calibrate(outputs, self.options.calibrate, models, evaluator)
        return failures.num_failures

    def _models(self) -> tuple[Model, ...]:
        with self.connection.client() as client:
            task = offered_task(client.tasks(), self.task_options.task)
            served = {model.id: model for model in client.models()}
        names = listed(self.options.models) or task.models
        if missing := [name for name in names if name not in task.models]:
            offered = ", ".join(task.models)
            raise RunError(f"{', '.join(missing)} does not offer {task.id}; offered by {offered}")
        return tuple(served[name] for name in dict.fromkeys(names))

    def _names(self, models: Sequence[Model]) -> tuple[str, ...]:
        names = list(map(attrgetter("id"), models))
        if self.options.without_tiles:
            if self.task_options.tiles in (None, "off"):
                raise RunError("--without-tiles compares with tiles: give --tiles, such as auto")
            names += [f"{name}{WITHOUT_TILES}" for name in names]
        if self.options.until_decided and len(names) != 2:
            raise RunError(f"--until-decided compares two models; given are {', '.join(names)}")
        return tuple(names)

    def _dataset(self, opening: Opening, seed: int) -> Dataset:
        opened = open_images(self.inputs, opening)
        if opened.files is None:
            split = self.options.split
            dataset = read_dataset(opened.path, self.options.images, split, opening.problems)
        else:
            store, files = opened.images()
            dataset = Dataset(list(map(LabelledImage, files)), store)
        parts = (Path(self.inputs[0]).resolve().name, self.options.split)
        dataset = replace(dataset, name=" ".join(filter(None, parts)))
        is_ordered = not self.options.until_decided
        images = drawn(dataset.images, self.options.sample, seed, is_ordered)
        return replace(dataset, images=images)

    def _race(self, race: Race, samples: Sequence[Sample]) -> tuple[list[Sample], str]:
        sent: list[Sample] = []

        async def run(advance: Callable[[], None]) -> None:
            async with self.connection.async_client() as client:
                sent.extend(await race.run(client, samples, advance))

        total = 2 * sum(len(sample.requests) for sample in samples)
        run_with_progress(total, run, "until decided")
        return sent, race.sentence()

    def _calibrate(
        self, outputs: Outputs, path: Path, models: Sequence[Model], evaluator: Evaluator
    ) -> None:
        calibrations = []
        task = self.task_options.task
        with_tiles = self.task_options.tiles not in (None, "off")
        for model in models:
            measure = evaluator.measures.get(model.id)
            scored = measure.scored() if isinstance(measure, ObjectsMeasure) else None
            calibration = fit_calibration(model.id, model.checkpoint, task, scored, with_tiles)
            calibrations.append(calibration)
        outputs.write(path, json.dumps({"calibrations": calibrations}, indent=1) + "\n")
        logger.info("the calibration is %s", path)


def print_conclusions(
    evaluation: Evaluation, document: Mapping[str, Any], failures: FailureLog
) -> None:
    for sentence in filter(None, [document["decided"], *document["sentences"]]):
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
