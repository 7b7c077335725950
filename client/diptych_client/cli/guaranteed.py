"""`annotate --labelled`: accepts labels that labelled images prove, and suggests more to label.

    pilot.json          names of the images whose answers fix the rules that are tested
    order.json          digests of the labelled images in the order of the bets
    suggestions.json    names of the images that a person was asked to label

Suggested images are drawn at random: their labels are a part of the proof. Those of others, which a
person chose, are final in the dataset, but never enter the proof or the choice of rules.

Bets depend on the order: images of earlier runs come first, others follow by their digests, which
know nothing of the labels. Needs the extra `evaluate`.
"""

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import blake2b
from operator import attrgetter, itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych_client.cli.options import GuaranteeOptions
from diptych_client.cli.terminal import logger, note_problems
from diptych_client.evaluation.annotation.consensus import (
    ANY,
    Agreement,
    Box,
    Records,
    agreement,
    write_consensus,
    write_review,
)
from diptych_client.evaluation.annotation.guarantee import (
    Guarantee,
    Promise,
    Promises,
    appearance,
    prove,
    repeats,
    truth_of,
)
from diptych_client.evaluation.dataset import Selection, read_json
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.formats.writing import Target
from diptych_client.evaluation.objects import run_lengths
from diptych_client.evaluation.questions import Job, ObjectsTruth
from diptych_client.geometry import RunLengthMask, corners
from diptych_client.inputs import Folder, ImageFile, ImageStore, Opening, Problems, open_images
from diptych_client.long_runs import RunError
from diptych_client.results import Detection, Instance, InstancesResult, Model

AnswerImages = Callable[[ImageStore, Iterable[ImageFile]], list[Records]]
Truths = dict[ImageFile, ObjectsTruth]
Known = tuple[Records, ObjectsTruth]

DEFAULT_MAX_WRONG = 0.05
_MAX_PILOT = 200
_SEED = 0
_DIGEST_BYTES = 8


@dataclass(slots=True)
class GuaranteedRun:
    """The labelling of a folder by what labelled images prove."""

    answer: AnswerImages
    target: Target
    folder: Folder
    images: Sequence[ImageFile]
    options: GuaranteeOptions
    min_iou: float
    problems: Problems
    suggested: list[str] = field(default_factory=list)
    reviewed: Truths = field(default_factory=dict)  # a person's labels of images of the folder
    sentences: list[str] = field(default_factory=list)  # for the user

    def label(self, served_models: Callable[[], Iterable[Model]]) -> tuple[list[Records], Path]:
        """Write the accepted labels; return the answers and the path of the dataset.

        Raise `RunError` if nothing is proved, before most images are sent.
        """
        options = self.options
        self._read_reviewed(options.reviewed)
        assert options.labelled is not None
        selection = Selection(options.labelled_images, options.split, self.problems)
        work = self.target.outputs.folder / "labelled" / "input"
        truths, store = read_truths(options.labelled, selection, self.target.job, work)
        note_problems(self.problems, self.target.outputs)
        pilot = self._pilot(set(map(partial(path_of, store), truths)))
        try:
            guarantee = self._prove(truths, store, pilot)
        except RunError as error:
            sentence = self._suggest(pilot)
            if not sentence:
                raise
            raise RunError(f"{error}; {sentence}") from error
        for sentence in guarantee.sentences():
            self.sentences.append(sentence)
            logger.info(sentence)
        if options.thresholds is not None:
            self._write_thresholds(options.thresholds, guarantee, served_models())
        answers = self.answer(self.folder, self.images)
        agreements = list(map(partial(self._accepted, guarantee), answers))
        self._write_guarantee(guarantee, agreements)
        dataset, note = write_consensus(self.target, agreements)
        self.sentences.append(note)
        self.sentences += filter(None, [self._suggest(pilot)])
        return answers, dataset

    def _write_guarantee(self, guarantee: Guarantee, agreements: Sequence[Agreement]) -> None:
        document = asdict(guarantee)
        del document["others"]
        if ANY in guarantee.accepting:
            document["accepting"] = document["accepting"][ANY]
        share = sum(map(attrgetter("is_unlike"), agreements)) / max(len(agreements), 1)
        document["share_unlike"] = share
        path = self.target.outputs.folder / "guarantee.json"
        self.target.outputs.write(path, json.dumps(document, indent=1))

    def _read_reviewed(self, reviewed_path: Path | None) -> None:
        """Read what was suggested earlier, and a person's labels of it.

        Raise `RunError` without all images that were drawn at random: leaving out the hard ones
        would prove nothing.
        """
        self.suggested = _read_texts(self.target.outputs.folder / "suggestions.json")
        if reviewed_path is None:
            return
        selection = Selection(self.folder.path, None, self.problems)
        work = self.target.outputs.folder / "reviewed" / "input"
        truths, _ = read_truths(reviewed_path, selection, self.target.job, work)
        for image in self.images:
            if image in truths:
                self.reviewed[image] = truths[image]
        missing = {*self.suggested}.difference(map(attrgetter("name"), self.reviewed))
        if missing or not self.reviewed:
            names = f"{', '.join(sorted(missing)):.1000}" or f"any image of {self.folder.path}"
            rule = "the images that were drawn at random prove only together"
            raise RunError(f"--reviewed {reviewed_path} has no labels of {names}; {rule}")

    def _pilot(self, labelled: set[Path | None]) -> list[ImageFile]:
        """Return the images whose answers fix the rules: the same at every look."""
        path = self.target.outputs.folder / "pilot.json"
        by_name = {image.name: image for image in self.images}
        names = _read_texts(path)
        if earlier := [by_name[name] for name in names if name in by_name]:
            return earlier
        unlabelled = []
        for image in self.images:
            if path_of(self.folder, image) not in labelled:
                unlabelled.append(image)
        if not unlabelled:
            raise RunError(f"all {len(self.images)} images are labelled already; give others")
        pilot = random.Random(_SEED).sample(unlabelled, min(_MAX_PILOT, len(unlabelled)))
        self.target.outputs.write(path, json.dumps(list(map(attrgetter("name"), pilot))))
        return pilot

    def _prove(self, truths: Truths, store: ImageStore, pilot: Sequence[ImageFile]) -> Guarantee:
        used = set(map(partial(path_of, self.folder), (*pilot, *self.reviewed)))
        labelled = [image for image in truths if path_of(store, image) not in used]
        drawn = [image for image in self.reviewed if image.name in self.suggested]
        known = {}
        num_known = 0
        for place, images, true_labels in (
            (store, labelled, truths),
            (self.folder, drawn, self.reviewed),
        ):
            for records in self.answer(place, images):
                num_known += 1
                image = records[0].image
                data = place.read(image)
                digest = blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
                known[digest] = (appearance(data), (records, true_labels[image]))
        distinct = self._distinct(known)
        if len(distinct) < num_known:
            count = f"{num_known - len(distinct)} of {num_known} labelled images"
            self.sentences.append(f"{count} nearly repeat others and do not count")
            logger.info(self.sentences[-1])
        options = self.options
        wrong = Promise(options.max_wrong or DEFAULT_MAX_WRONG, options.confidence)
        missed = options.max_missed and Promise(options.max_missed, options.confidence)
        promises = Promises(wrong, missed or None, options.per_class)
        pilot_answers = self.answer(self.folder, pilot)
        return prove(distinct, pilot_answers, self.min_iou, promises)

    def _distinct(self, known: Mapping[str, tuple[NDArray[np.float32], Known]]) -> list[Known]:
        """Return known images in the order of the bets, of near-duplicates the first."""
        path = self.target.outputs.folder / "order.json"
        order = _read_texts(path)
        order += sorted(known.keys() - set(order))
        self.target.outputs.write(path, json.dumps(order))
        images = [known[digest] for digest in order if digest in known]
        is_repeat = repeats(np.array(list(map(itemgetter(0), images))))
        return [images[index][1] for index in np.flatnonzero(~is_repeat).tolist()]

    def _accepted(self, guarantee: Guarantee, records: Records) -> Agreement:
        """Return a person's labels, or proved ones."""
        truth = self.reviewed.get(records[0].image)
        if truth is None:
            return guarantee.accept(records)
        labels = _true_labels(records, truth)
        return Agreement(records, tuple(labels), (1.0,) * len(labels), ())

    def _write_thresholds(self, path: Path, guarantee: Guarantee, models: Iterable[Model]) -> None:
        (model,) = [served for served in models if served.id == self.target.job.model]
        fields = self.target.job.fields()
        common = {
            "model": fields.pop("model"),
            "checkpoint": model.checkpoint,
            "precision": model.precision,
            "calibration": model.calibration,
            "fields": fields,
        }
        rows = [common | proof for proof in guarantee.proofs()]
        self.target.outputs.write(path, json.dumps({"proofs": rows}, indent=1) + "\n")
        logger.info("%s has what is proved for the service", path)

    def _suggest(self, pilot: Sequence[ImageFile]) -> str:
        """Draw images, record them before a person sees them, and return where they are.

        The list has those of earlier runs, too, that a person did not label.
        """
        if not self.options.suggest:
            return ""
        known = {*self.suggested, *map(attrgetter("name"), pilot)}
        others = [image for image in self.images if image.name not in known]
        unlabelled = {*self.suggested}.difference(map(attrgetter("name"), self.reviewed))
        waiting = [image for image in self.images if image.name in unlabelled]
        number = min(max(self.options.suggest - len(waiting), 0), len(others))
        drawn = random.Random(len(self.suggested)).sample(others, number)
        if not waiting and not drawn:
            return "no image is left to suggest"
        review = []
        for records in self.answer(self.folder, (*waiting, *drawn)):
            if records[0].image.name not in unlabelled:
                self.suggested.append(records[0].image.name)
            review.append(agreement(records, self.min_iou, {}))
        outputs = self.target.outputs
        outputs.write(outputs.folder / "suggestions.json", json.dumps(self.suggested))
        path = write_review(self.target, "suggested_", review)
        return f"{len(review)} images to label next are in {path}: give all labels by --reviewed"


def read_truths(
    path: Path, selection: Selection, job: Job, work: Path
) -> tuple[Truths, ImageStore]:
    """Read the true labels for a job; raise `RunError` if there are none.

    An archive is unpacked to `work`. An image may have several lines in its file.
    """
    problems = selection.problems
    opened = open_images([str(path)], Opening(work, problems))
    dataset = read_dataset(opened.path, selection.images, selection.split, problems)
    truths: Truths = {}
    for labelled in dataset.images:
        truth = truth_of(labelled, job)
        earlier = truths.get(labelled.image)
        if truth is not None and earlier is not None:
            truth = ObjectsTruth((*earlier.objects, *truth.objects))
        if truth is not None:
            truths[labelled.image] = truth
    if not truths:
        counts = dataset.inventory.labels
        labels = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        cause = f"it has {labels}" if labels else dataset.note or problems.summary()
        raise RunError(f"{path} has no true labels for {job.task}; {cause}")
    return truths, dataset.store


def _read_texts(path: Path) -> list[str]:
    """Return the list of an earlier run; empty before the first one."""
    texts = read_json(path) if path.exists() else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{path} must be a list of texts, got {texts!r:.80}")
    return texts


def path_of(store: ImageStore, image: ImageFile) -> Path | None:
    """Return where an image is; None if it is a row of a file."""
    return (store.path / image.name).resolve() if isinstance(store, Folder) else None


def _true_labels(records: Records, truth: ObjectsTruth) -> list[Box]:
    answer = records[0].answer
    labels: list[Box] = []
    for true in truth.objects:
        if not isinstance(answer.result, InstancesResult):
            labels.append(Detection(true.box_xyxy, true.label, 1.0))
        elif true.segmentation is None:
            labels.append(Instance(true.box_xyxy, true.label, 1.0, (corners(true.box_xyxy),)))
        else:
            runs = run_lengths(true.segmentation, answer.image)
            counts = runs["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            mask = RunLengthMask(tuple(runs["size"]), text)
            labels.append(Instance(true.box_xyxy, true.label, 1.0, mask=mask))
    return labels
