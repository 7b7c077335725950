"""`annotate --labelled`: reads the true labels, writes the accepted labels and the review list.

Needs the extra `evaluate`.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from diptych_client.annotate.appearance import Seen, seen
from diptych_client.annotate.consensus import Agreement, write_consensus, write_review
from diptych_client.annotate.dataset_files import DatasetFormat, write_dataset
from diptych_client.annotate.guarantee import Promise
from diptych_client.annotate.job import Job
from diptych_client.annotate.journal import Record
from diptych_client.annotate.judging import Tolerance, Truth, truth_of
from diptych_client.annotate.proposals import has_text
from diptych_client.annotate.proving import (
    Guarantee,
    Promises,
    Records,
    check_enough,
    prove,
    refused,
)
from diptych_client.annotate.shift import Shift, find_shift
from diptych_client.annotate.suggesting import Suggestions, final_boxes, final_text
from diptych_client.cli.options import AnnotateOptions, GuaranteeOptions
from diptych_client.cli.terminal import logger
from diptych_client.evaluation.questionnaire import ObjectsTruth, TextsTruth
from diptych_client.evaluation.readers import read_dataset
from diptych_client.inputs import Folder, ImageFile, ImageStore
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Model
from diptych_client.transports.rest_messages import answer_json

AnswerImages = Callable[[Path, ImageStore, Sequence[ImageFile]], list[Records]]

DEFAULT_MAX_WRONG = 0.05
_MAX_SAMPLE = 200
_SEED = 0
_PILOT = "pilot.json"  # names of images


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their true labels."""

    store: ImageStore
    truths: Mapping[ImageFile, Truth]

    def without(self, folder: Folder, images: Iterable[ImageFile]) -> Self:
        """Return these but for the images of a folder."""
        if not isinstance(self.store, Folder):
            return self
        left_out = {(folder.path / each.name).resolve() for each in images}
        path = self.store.path
        kept = {
            image: truth
            for image, truth in self.truths.items()
            if (path / image.name).resolve() not in left_out
        }
        return replace(self, truths=kept)


@dataclass(frozen=True, slots=True)
class _Run:
    """The command: what is asked, and the images that it is about."""

    answer: AnswerImages
    outputs: Outputs
    folder: Folder
    images: Sequence[ImageFile]
    given: GuaranteeOptions
    job: Job
    promises: Promises

    @property
    def out(self) -> Path:
        return self.outputs.folder

    def reviewed(self, suggestions: Suggestions) -> Mapping[ImageFile, Truth]:
        """Return a person's labels of these images.

        Raise `RunError` without all images that were drawn at random: whoever leaves out the hard
        ones proves nothing.
        """
        path = self.given.reviewed
        if path is None:
            return {}
        own = _read(path, self.folder.path, self.job).truths
        asked = set(self.images)
        found = {image: truth for image, truth in own.items() if image in asked}
        if not found:
            raise RunError(f"--reviewed {path} labels no image of {self.folder.path}")
        drawn = {name for name, is_random in suggestions.is_random.items() if is_random}
        if missing := sorted(drawn - {image.name for image in found}):
            problem = f"{len(missing)} of {len(drawn)} images drawn at random have no labels"
            raise RunError(f"--reviewed {path}: {problem}, such as {missing[0]}; label all of them")
        return found

    def draw(self, suggestions: Suggestions) -> str:
        """Suggest random images if asked for; return what was drawn, empty for nothing."""
        pilot = {each.name for each in _kept_pilot(self.out, self.images)}
        drawn = suggestions.drawn(self.images, pilot, self.given.suggest or 0)
        if not drawn:
            return ""
        suggestions.add([each.name for each in drawn], is_random=True)
        place = self.suggest(self.answer(self.out, self.folder, drawn))
        return f"{len(drawn)} images drawn at random are in {place}"

    def proved(
        self, suggestions: Suggestions, reviewed: Mapping[ImageFile, Truth]
    ) -> tuple[Guarantee, Shift | None]:
        """Return what is proved; raise `RunError` if nothing is, before most images are sent."""
        assert self.given.labelled is not None
        labelled = _read(self.given.labelled, self.given.labelled_images, self.job)
        pilot = self.pilot(labelled)
        labelled = labelled.without(self.folder, [*pilot, *reviewed])
        drawn = {}
        for image, truth in reviewed.items():
            if suggestions.is_random.get(image.name):
                drawn[image] = truth
        check_enough([*labelled.truths.values(), *drawn.values()], self.promises.wrong)
        sample = self.answer(self.out, self.folder, pilot)
        known = self.answer(self.out / "labelled", labelled.store, list(labelled.truths))
        answered = self.answer(self.out, self.folder, list(drawn))
        compared = [*self.seen(labelled.store, known), *self.seen(self.folder, answered)]
        shift = None
        if compared and sample:
            shift = find_shift(compared, [*self.seen(self.folder, sample)])
        if shift is not None and not shift.parts:
            raise RunError(shift.sentence())
        pairs = [(records, labelled.truths[records[0].image]) for records in known]
        pairs += [(records, drawn[records[0].image]) for records in answered]
        return prove(pairs, sample, self.promises), shift

    def pilot(self, labelled: Labelled) -> list[ImageFile]:
        """Return the images whose answers fix what is tried: the same at every look."""
        if kept := _kept_pilot(self.out, self.images):
            return kept
        known = set[Path]()
        if isinstance(labelled.store, Folder):
            known = {(labelled.store.path / each.name).resolve() for each in labelled.truths}
        path = self.folder.path
        others = [each for each in self.images if (path / each.name).resolve() not in known]
        if not others:
            raise RunError(f"all {len(self.images)} images are labelled already; give others")
        chosen = random.Random(_SEED).sample(others, min(_MAX_SAMPLE, len(others)))
        self.outputs.write(self.out / _PILOT, json.dumps([each.name for each in chosen]))
        return chosen

    def seen(self, store: ImageStore, answers: Iterable[Records]) -> Iterator[Seen]:
        """Yield the images as the test for a shift compares them."""
        for records in answers:
            yield seen(records, store.read(records[0].image), self.job.requested_labels())

    def suggest(self, suggested: Sequence[Records]) -> str:
        """Write images for a person and return where they are."""
        if suggested and has_text(suggested[0][0]):
            return str(_write_texts(self.outputs, "suggested.jsonl", suggested))
        tolerance = self.promises.tolerance
        review = [refused(records, tolerance) for records in suggested]
        write_review(self.outputs, "suggested_", review, self.job)
        return str(self.out / "suggested_review.json")


def annotate_with_guarantee(
    answer: AnswerImages,
    outputs: Outputs,
    folder: Folder,
    images: Sequence[ImageFile],
    options: AnnotateOptions,
    given: GuaranteeOptions,
    job: Job,
    served: Callable[[], Iterable[Model]],
) -> tuple[list[Records], Path, list[str]]:
    """Label the images and write what is accepted.

    Return the answers, the path of the dataset and what to say about it. Raise `RunError` if
    nothing is proved, before most images are sent.
    """
    missed = None if given.max_missed is None else Promise(given.max_missed, given.confidence)
    wrong = Promise(given.max_wrong or DEFAULT_MAX_WRONG, given.confidence)
    promises = Promises(wrong, missed, Tolerance(options.iou, given.max_cer))
    out = outputs.folder
    run = _Run(answer, outputs, folder, images, given, job, promises)
    suggestions = Suggestions.read(outputs)
    reviewed = run.reviewed(suggestions)
    try:
        guarantee, shift = run.proved(suggestions, reviewed)
    except RunError as error:
        drawn = run.draw(suggestions)
        if not drawn:
            raise
        raise RunError(f"{error}; {drawn}: give the labels of all by --reviewed") from error
    said = guarantee.sentences()
    if shift is not None:
        said.append(shift.sentence())
    for sentence in said:
        logger.info(sentence)
    if given.thresholds is not None:
        _write_thresholds(outputs, given.thresholds, guarantee, job, served())
    answers = answer(out, folder, images)
    others = set[str]()
    if shift is not None:
        others = {each.name for each in run.seen(folder, answers) if shift.has(each)}
    accepting = _Accepting(
        guarantee, others, {image.name: truth for image, truth in reviewed.items()}
    )
    place = (options.dataset_format, outputs, folder.path)
    dataset, num_review = _write(*place, answers, job, accepting)
    review = out / ("review.jsonl" if dataset.suffix == ".jsonl" else "review.json")
    said.append(f"{num_review} images are to be reviewed, see {review}")
    if given.suggest is not None:
        chosen = suggestions.most_left(answers, guarantee, given.suggest)
        suggestions.add([records[0].image.name for records in chosen], is_random=False)
        said.append(f"{len(chosen)} images to label next are in {run.suggest(chosen)}")
    return answers, dataset, said


def _kept_pilot(out: Path, images: Sequence[ImageFile]) -> list[ImageFile]:
    path = out / _PILOT
    chosen = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    by_name = {each.name: each for each in images}
    return [by_name[name] for name in chosen if name in by_name]


def _write_thresholds(
    outputs: Outputs, path: Path, guarantee: Guarantee, job: Job, models: Iterable[Model]
) -> None:
    """Write what is proved of a model as a part of a calibration file of the service."""
    (model,) = [each for each in models if each.id == job.model]
    fields = job.fields()
    proved = {
        "model": fields.pop("model"),
        "checkpoint": model.checkpoint,
        "precision": model.precision,
        "calibration": model.calibration,
        "fields": fields,
    }
    rows = [proved | each for each in guarantee.proofs()]
    outputs.write(path, json.dumps({"proofs": rows}, indent=1) + "\n")
    shares = ", ".join(f"{row['min_precision']:g}" for row in rows)
    logger.info("%s has what is proved for the service: min_precision %s", path, shares)


def _read(path: Path, images: Path | None, job: Job) -> Labelled:
    """Read the true labels of a job; raise `RunError` if there are none."""
    dataset = read_dataset(path, images)
    truths: dict[ImageFile, Truth] = {}
    for each in dataset.images:
        truth = truth_of(each, job)
        if truth is not None:
            truths[each.image] = _joined(truths.get(each.image), truth)
    if not truths:
        raise RunError(f"{path} has no true labels for {job.task}; {dataset.note}")
    return Labelled(dataset.store, truths)


def _joined(known: Truth | None, more: Truth) -> Truth:
    """Return the labels of an image that has several lines in its file."""
    if isinstance(known, ObjectsTruth) and isinstance(more, ObjectsTruth):
        return ObjectsTruth((*known.objects, *more.objects))
    if isinstance(known, TextsTruth) and isinstance(more, TextsTruth):
        return TextsTruth((*known.texts, *more.texts))
    return more


@dataclass(frozen=True, slots=True)
class _Accepting:
    """Accepts proved labels, except in other images, and those of a person."""

    guarantee: Guarantee
    others: Set[str]
    reviewed: Mapping[str, Truth]

    def boxes(self, records: Records) -> Agreement:
        name = records[0].image.name
        truth = self.reviewed.get(name)
        if isinstance(truth, ObjectsTruth):
            return final_boxes(records, truth)
        if name in self.others:
            return refused(records, self.guarantee.tolerance)
        return self.guarantee.accept(records)

    def text(self, records: Records) -> Record | None:
        """Return the record whose text or text regions are accepted, if any."""
        name = records[0].image.name
        if name in self.reviewed:
            return final_text(records, self.reviewed[name])
        return None if name in self.others else self.guarantee.accept_text(records)

    def leaves_text(self, records: Records) -> bool:
        """Return True if a text or a text region is left to a person."""
        name = records[0].image.name
        if name in self.reviewed:
            return False
        return name in self.others or bool(self.guarantee.left_texts(records))


def _write(
    dataset_format: DatasetFormat,
    outputs: Outputs,
    folder: Path,
    answers: Sequence[Records],
    job: Job,
    accepting: _Accepting,
) -> tuple[Path, int]:
    """Write what is accepted, the review list and what is proved.

    Return the path of the dataset and the number of images to review.
    """
    document = accepting.guarantee.document()
    outputs.write(outputs.folder / "guarantee.json", json.dumps(document, indent=1))
    if any(has_text(records[0]) for records in answers):
        accepted = []
        review = []
        for records in answers:
            record = accepting.text(records)
            if record is not None:
                accepted.append(record)
            if accepting.leaves_text(records):
                review.append(records)
        _write_texts(outputs, "review.jsonl", review)
        return write_dataset(dataset_format, outputs, folder, accepted, job), len(review)
    agreements = [accepting.boxes(records) for records in answers]
    dataset = write_consensus(dataset_format, outputs, folder, agreements, job)
    return dataset, sum(bool(each.differing) for each in agreements)


def _write_texts(outputs: Outputs, name: str, answers: Sequence[Records]) -> Path:
    """Write the answers to images for review, a line for each image."""
    lines = []
    for records in answers:
        answered = [answer_json(each.answer) for each in records]
        row = {"image": records[0].image.name, "answers": answered}
        lines.append(json.dumps(row) + "\n")
    return outputs.write(outputs.folder / name, "".join(lines))
