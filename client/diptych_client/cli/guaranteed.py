"""`annotate --labelled`: reads the true labels, writes the accepted labels and the review list.

Needs the extra `evaluate`.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diptych_client.annotate.consensus import write_consensus
from diptych_client.annotate.dataset_files import DatasetFormat, write_atomically, write_dataset
from diptych_client.annotate.guarantee import Promise
from diptych_client.annotate.job import Job
from diptych_client.annotate.judging import Tolerance, Truth, truth_of
from diptych_client.annotate.proposals import has_text
from diptych_client.annotate.proving import Guarantee, Promises, Records, check_enough, prove
from diptych_client.cli.options import AnnotateOptions, GuaranteeOptions
from diptych_client.cli.terminal import logger
from diptych_client.evaluation.questionnaire import ObjectsTruth, TextsTruth
from diptych_client.evaluation.readers import read_dataset
from diptych_client.inputs import Folder, ImageFile, ImageStore
from diptych_client.long_runs import RunError
from diptych_client.results import Model
from diptych_client.transports.rest_messages import answer_json

AnswerImages = Callable[[Path, ImageStore, Sequence[ImageFile]], list[Records]]

DEFAULT_MAX_WRONG = 0.05
_MAX_SAMPLE = 200
_SEED = 0


@dataclass(frozen=True, slots=True)
class Labelled:
    """Images with their true labels."""

    store: ImageStore
    truths: Mapping[ImageFile, Truth]

    def sample(self, folder: Folder, images: Sequence[ImageFile]) -> list[ImageFile]:
        """Return a sample of the images that are not among these."""
        known = set[Path]()
        if isinstance(self.store, Folder):
            known = {(self.store.path / each.name).resolve() for each in self.truths}
        others = [each for each in images if (folder.path / each.name).resolve() not in known]
        if not others:
            raise RunError(f"all {len(images)} images are labelled already; give others")
        return random.Random(_SEED).sample(others, min(_MAX_SAMPLE, len(others)))


def annotate_with_guarantee(
    answer: AnswerImages,
    out: Path,
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
    labelled = _read_labelled(given, job, wrong)
    sample = answer(out, folder, labelled.sample(folder, images))
    known = answer(out / "labelled", labelled.store, list(labelled.truths))
    truths = {image.name: truth for image, truth in labelled.truths.items()}
    pairs = [(records, truths[records[0].image.name]) for records in known]
    guarantee = prove(pairs, sample, promises)
    for sentence in guarantee.sentences():
        logger.info(sentence)
    if given.thresholds is not None:
        _write_thresholds(given.thresholds, guarantee, job, served())
    answers = answer(out, folder, images)
    place = (options.dataset_format, out, folder.path)
    dataset, num_review = _write(*place, answers, job, guarantee)
    review = out / ("review.jsonl" if dataset.suffix == ".jsonl" else "review.json")
    notes = [*guarantee.sentences(), f"{num_review} images are to be reviewed, see {review}"]
    return answers, dataset, notes


def _write_thresholds(path: Path, guarantee: Guarantee, job: Job, models: Iterable[Model]) -> None:
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
    write_atomically(path, json.dumps({"proofs": rows}, indent=1) + "\n")
    shares = ", ".join(f"{row['min_precision']:g}" for row in rows)
    logger.info("%s has what is proved for the service: min_precision %s", path, shares)


def _read_labelled(given: GuaranteeOptions, job: Job, promise: Promise) -> Labelled:
    """Read the true labels of a job; raise `RunError` if they are too few for any proof."""
    assert given.labelled is not None
    dataset = read_dataset(given.labelled, given.labelled_images)
    truths: dict[ImageFile, Truth] = {}
    for each in dataset.images:
        truth = truth_of(each, job)
        if truth is not None:
            truths[each.image] = _joined(truths.get(each.image), truth)
    if not truths:
        raise RunError(f"{given.labelled} has no true labels for {job.task}; {dataset.note}")
    check_enough(list(truths.values()), promise)
    return Labelled(dataset.store, truths)


def _joined(known: Truth | None, more: Truth) -> Truth:
    """Return the labels of an image that has several lines in its file."""
    if isinstance(known, ObjectsTruth) and isinstance(more, ObjectsTruth):
        return ObjectsTruth((*known.objects, *more.objects))
    if isinstance(known, TextsTruth) and isinstance(more, TextsTruth):
        return TextsTruth((*known.texts, *more.texts))
    return more


def _write(
    dataset_format: DatasetFormat,
    out: Path,
    folder: Path,
    answers: Sequence[Records],
    job: Job,
    guarantee: Guarantee,
) -> tuple[Path, int]:
    """Write what is accepted, the review list and what is proved.

    Return the path of the dataset and the number of images to review.
    """
    write_atomically(out / "guarantee.json", json.dumps(guarantee.document(), indent=1))
    if any(has_text(records[0]) for records in answers):
        accepted = [each[0] for each in answers if guarantee.accepts_text(each)]
        review = [each for each in answers if not guarantee.accepts_text(each)]
        lines = []
        for records in review:
            answered = [answer_json(each.answer) for each in records]
            row = {"image": records[0].image.name, "answers": answered}
            lines.append(json.dumps(row) + "\n")
        write_atomically(out / "review.jsonl", "".join(lines))
        return write_dataset(dataset_format, out, folder, accepted, job), len(review)
    agreements = [guarantee.accept(records) for records in answers]
    dataset = write_consensus(dataset_format, out, folder, agreements, job)
    return dataset, sum(bool(each.differing) for each in agreements)
