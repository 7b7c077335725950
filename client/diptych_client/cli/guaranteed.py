r"""`annotate --labelled`: accepts labels that labelled images prove, and suggests more to label.

    pilot.json          names of the images whose answers fix the rules that are tested
    suggestions.jsonl   {"image": name, "is_random": true or false}\n…

While nothing is proved, images are suggested at random: their labels are a part of the proof. Later
they are those with the most labels that are not accepted. They are not a random sample, and they
depend on the proof so far. Their labels are therefore final in the dataset, but never enter the
proof or the choice of rules. Needs the extra `evaluate`.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path

from diptych_client.cli.options import GuaranteeOptions
from diptych_client.cli.terminal import logger, note_problems
from diptych_client.evaluation.annotation.consensus import (
    NEVER,
    Agreement,
    Label,
    Records,
    agreement,
    write_consensus,
    write_review,
)
from diptych_client.evaluation.annotation.guarantee import (
    Guarantee,
    Promise,
    Tolerance,
    Truth,
    appearance,
    differing_images,
    prove,
    truth_of,
)
from diptych_client.evaluation.dataset import Selection, read_json, read_lines, readable_as
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.formats.writing import Target
from diptych_client.evaluation.objects import run_lengths
from diptych_client.evaluation.questions import Job, ObjectsTruth, TextsTruth
from diptych_client.geometry import RunLengthMask, corners
from diptych_client.inputs import (
    Folder,
    ImageFile,
    ImageStore,
    Opening,
    Problems,
    open_images,
)
from diptych_client.long_runs import RunError
from diptych_client.results import Detection, Instance, InstancesResult, Model, TextResult

AnswerImages = Callable[[ImageStore, Iterable[ImageFile]], list[Records]]
Truths = dict[ImageFile, Truth]

DEFAULT_MAX_WRONG = 0.05
_MAX_PILOT = 200
_SEED = 0


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
    is_random: dict[str, bool] = field(default_factory=dict)  # suggested images
    reviewed: Truths = field(default_factory=dict)  # a person's labels of suggested images
    sentences: list[str] = field(default_factory=list)  # for the user

    def label(self, served_models: Callable[[], Iterable[Model]]) -> tuple[list[Records], Path]:
        """Write the accepted labels; return the answers and the path of the dataset.

        Raise `RunError` if nothing is proved, before most images are sent.
        """
        options = self.options
        self._read_suggestions(options.reviewed)
        assert options.labelled is not None
        selection = Selection(options.labelled_images, options.split, self.problems)
        work = self.target.outputs.folder / "labelled" / "input"
        truths, store = read_truths(options.labelled, selection, self.target.job, work)
        note_problems(self.problems, self.target.outputs)
        pilot = self._pilot(set(map(partial(path_of, store), truths)))
        try:
            guarantee = self._prove(truths, store, pilot)
        except RunError as error:
            place = self._suggest_random(options.suggest or 0, pilot)
            if place is None:
                raise
            raise RunError(f"{error}; {place}: give the labels of all by --reviewed") from error
        self.sentences += guarantee.sentences()
        for sentence in self.sentences:
            logger.info(sentence)
        if options.thresholds is not None:
            self._write_thresholds(options.thresholds, guarantee, served_models())
        answers = self.answer(self.folder, self.images)
        agreements = list(map(partial(self._accepted, guarantee), answers))
        document = asdict(guarantee)
        del document["others"]
        self.target.outputs.write(
            self.target.outputs.folder / "guarantee.json", json.dumps(document, indent=1)
        )
        dataset, review = write_consensus(self.target, agreements)
        num_left = sum(bool(image.differing) for image in agreements)
        self.sentences.append(f"{num_left} images are to be reviewed, see {review}")
        if options.suggest is not None:
            self._suggest_most_left(agreements, options.suggest)
        return answers, dataset

    def _read_suggestions(self, reviewed_path: Path | None) -> None:
        """Read what was suggested earlier, and a person's labels of it.

        Raise `RunError` without all images that were drawn at random: leaving out the hard ones
        would prove nothing.
        """
        path = self.target.outputs.folder / "suggestions.jsonl"
        for number, line in read_lines(path) if path.exists() else ():
            with readable_as("JSON", path):
                row = json.loads(line)
            match row:
                case {"image": str(name), "is_random": bool(is_random)}:
                    self.is_random[name] = is_random
                case _:
                    rule = "an object with image and is_random"
                    raise RunError(f"{path}, line {number} must be {rule}, got {row!r:.80}")
        if reviewed_path is None:
            return
        selection = Selection(self.folder.path, None, self.problems)
        work = self.target.outputs.folder / "reviewed" / "input"
        truths, _ = read_truths(reviewed_path, selection, self.target.job, work)
        for image in self.images:
            if image in truths:
                self.reviewed[image] = truths[image]
        missing = {name for name, is_random in self.is_random.items() if is_random}
        missing -= set(map(attrgetter("name"), self.reviewed))
        if missing or not self.reviewed:
            names = f"{', '.join(sorted(missing)):.1000}" or f"any image of {self.folder.path}"
            rule = "the images that were drawn at random prove only together"
            raise RunError(f"--reviewed {reviewed_path} has no labels of {names}; {rule}")

    def _pilot(self, labelled: set[Path | None]) -> list[ImageFile]:
        """Return the images whose answers fix the rules: the same at every look."""
        path = self.target.outputs.folder / "pilot.json"
        by_name = {image.name: image for image in self.images}
        names = read_json(path) if path.exists() else []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise RunError(f"{path} must be a list of image names, got {names!r:.80}")
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
        drawn = [image for image in self.reviewed if self.is_random.get(image.name)]
        labels = self.target.job.requested_labels()
        judged = []
        appearances = []
        known = ((store, labelled, truths), (self.folder, drawn, self.reviewed))
        for place, images, true_labels in known:
            for records in self.answer(place, images):
                judged.append((records, true_labels[records[0].image]))
                appearances.append(appearance(records, labels))
        pilot_answers = self.answer(self.folder, pilot)
        others = [
            appearance(records, self.target.job.requested_labels()) for records in pilot_answers
        ]
        if indices := differing_images(appearances, others):
            names = ", ".join(pilot_answers[index][0].image.name for index in indices)
            cause = "the images differ from the labelled ones: nothing is accepted"
            raise RunError(f"{cause}; label some of them, such as {names}")
        options = self.options
        wrong = Promise(options.max_wrong or DEFAULT_MAX_WRONG, options.confidence)
        missed = None
        if options.max_missed is not None:
            missed = Promise(options.max_missed, options.confidence)
        tolerance = Tolerance(self.min_iou, options.max_cer)
        return prove(judged, pilot_answers, tolerance, wrong, missed)

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

    def _suggest_random(self, number: int, pilot: Sequence[ImageFile]) -> str | None:
        """Suggest images drawn at random; return where they are, None if there are none."""
        known = self.is_random.keys() | map(attrgetter("name"), pilot)
        others = [image for image in self.images if image.name not in known]
        drawn = random.Random(len(self.is_random)).sample(others, min(number, len(others)))
        if not drawn:
            return None
        return self._suggest(self.answer(self.folder, drawn), is_random=True)

    def _suggest_most_left(self, agreements: Iterable[Agreement], number: int) -> None:
        left = []
        for image in agreements:
            if image.differing and image.name not in self.is_random:
                left.append(image)
        left.sort(key=lambda image: -len(image.differing))
        records = list(map(attrgetter("records"), left[:number]))
        self.sentences.append(self._suggest(records, is_random=False))

    def _suggest(self, answers: Sequence[Records], is_random: bool) -> str:
        """Record images before a person sees them; return where they are."""
        for records in answers:
            self.is_random[records[0].image.name] = is_random
        rows = [{"image": name, "is_random": value} for name, value in self.is_random.items()]
        self.target.outputs.write_lines(self.target.outputs.folder / "suggestions.jsonl", rows)
        review = [agreement(records, self.min_iou, NEVER) for records in answers]
        path = write_review(self.target, "suggested", review)
        return f"{len(answers)} images to label next are in {path}"


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
        if isinstance(truth, ObjectsTruth) and isinstance(earlier, ObjectsTruth):
            truth = ObjectsTruth((*earlier.objects, *truth.objects))
        elif isinstance(truth, TextsTruth) and isinstance(earlier, TextsTruth):
            truth = TextsTruth((*earlier.texts, *truth.texts))
        if truth is not None:
            truths[labelled.image] = truth
    if not truths:
        counts = dataset.inventory.labels
        labels = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        cause = f"it has {labels}" if labels else dataset.note or problems.summary()
        raise RunError(f"{path} has no true labels for {job.task}; {cause}")
    return truths, dataset.store


def path_of(store: ImageStore, image: ImageFile) -> Path | None:
    """Return where an image is; None if it is a row of a file."""
    return (store.path / image.name).resolve() if isinstance(store, Folder) else None


def _true_labels(records: Records, truth: Truth) -> list[Label]:
    answer = records[0].answer
    if isinstance(truth, TextsTruth):
        return [TextResult(truth.texts[0])]
    labels: list[Label] = []
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
