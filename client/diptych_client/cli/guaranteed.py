r"""`annotate --labelled`: accepts labels that labelled images prove, and suggests more to label.

    pilot.json          names of the images whose answers fix the rules that are tested
    suggestions.jsonl   {"image": name, "is_random": true or false}\n…

While nothing is proved, images are suggested at random: their labels are a part of the proof. Later
they are those that the proof leaves most to a person: boxes that are not accepted count, most those
near the threshold. They are not a random sample, and they depend on the proof so far. Their labels
are therefore final in the dataset, but never enter the proof or the choice of rules. Needs the
extra `evaluate`.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diptych_client.cli.options import GuaranteeOptions
from diptych_client.cli.terminal import logger
from diptych_client.evaluation.annotation.consensus import (
    NEVER,
    Agreement,
    Records,
    agreement,
    has_text,
    write_consensus,
    write_review,
)
from diptych_client.evaluation.annotation.guarantee import (
    Guarantee,
    Promise,
    Promises,
    Tolerance,
    Truth,
    check_enough,
    prove,
    truth_of,
)
from diptych_client.evaluation.annotation.shift import Appearance, Shift, appearance, find_shift
from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.evaluation.formats.writing import DatasetFormat, write_dataset
from diptych_client.evaluation.job import Box, Job, Record
from diptych_client.evaluation.objects import run_lengths
from diptych_client.evaluation.questions import ObjectsTruth, TextsTruth
from diptych_client.geometry import RunLengthMask, corners
from diptych_client.inputs import Folder, ImageFile, ImageStore
from diptych_client.long_runs import Outputs, RunError
from diptych_client.results import Detection, Instance, InstancesResult, Model, TextResult
from diptych_client.transports.messages import to_json

AnswerImages = Callable[[Path, ImageStore, Iterable[ImageFile]], list[Records]]
Truths = dict[ImageFile, Truth]

DEFAULT_MAX_WRONG = 0.05
_MAX_PILOT = 200
_SEED = 0


@dataclass(slots=True)
class GuaranteedRun:
    """The labelling of a folder by what labelled images prove."""

    answer: AnswerImages
    outputs: Outputs
    folder: Folder
    images: Sequence[ImageFile]
    job: Job
    promises: Promises
    is_random: dict[str, bool] = field(default_factory=dict)  # suggested images
    reviewed: Truths = field(default_factory=dict)  # a person's labels of suggested images
    sentences: list[str] = field(default_factory=list)  # for the user

    def label(
        self,
        options: GuaranteeOptions,
        dataset_format: DatasetFormat,
        served_models: Callable[[], Iterable[Model]],
    ) -> tuple[list[Records], Path]:
        """Write the accepted labels; return the answers and the path of the dataset.

        Raise `RunError` if nothing is proved, before most images are sent.
        """
        self._read_suggestions(options.reviewed)
        try:
            guarantee, shift = self._prove(options)
        except RunError as error:
            place = self._suggest_random(options.suggest or 0)
            if place is None:
                raise
            raise RunError(f"{error}; {place}: give the labels of all by --reviewed") from error
        self.sentences += guarantee.sentences()
        if shift is not None:
            self.sentences.append(shift.sentence())
        for sentence in self.sentences:
            logger.info(sentence)
        if options.thresholds is not None:
            self._write_thresholds(options.thresholds, guarantee, served_models())
        answers = self._answers(self.images)
        unlike = set[str]()
        if shift is not None:
            appearances = self._appearances(self.folder, answers)
            unlike = {image.name for image in appearances if shift.has(image)}
        dataset = self._write(dataset_format, answers, guarantee, unlike)
        if options.suggest is not None:
            self._suggest_most_left(answers, guarantee, options.suggest)
        return answers, dataset

    def _answers(self, images: Iterable[ImageFile]) -> list[Records]:
        return self.answer(self.outputs.folder, self.folder, images)

    def _read_suggestions(self, reviewed_path: Path | None) -> None:
        """Read what was suggested earlier, and a person's labels of it.

        Raise `RunError` without all images that were drawn at random: leaving out the hard ones
        would prove nothing.
        """
        path = self.outputs.folder / "suggestions.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            row = json.loads(line)
            self.is_random[row["image"]] = row["is_random"]
        if reviewed_path is None:
            return
        images = set(self.images)
        truths, _ = read_truths(reviewed_path, self.folder.path, self.job)
        self.reviewed = {image: truth for image, truth in truths.items() if image in images}
        if not self.reviewed:
            raise RunError(f"--reviewed {reviewed_path} labels no image of {self.folder.path}")
        drawn = {name for name, is_random in self.is_random.items() if is_random}
        if missing := sorted(drawn - {image.name for image in self.reviewed}):
            count = f"{len(missing)} of {len(drawn)}"
            problem = f"{count} images drawn at random have no labels, such as {missing[0]}"
            raise RunError(f"--reviewed {reviewed_path}: {problem}; label all of them")

    def _prove(self, options: GuaranteeOptions) -> tuple[Guarantee, Shift | None]:
        assert options.labelled is not None
        truths, store = read_truths(options.labelled, options.labelled_images, self.job)
        pilot = self._pilot({path_of(store, image) for image in truths})
        used = {path_of(self.folder, image) for image in (*pilot, *self.reviewed)}
        truths = {image: truths[image] for image in truths if path_of(store, image) not in used}
        drawn = Truths()
        for image, truth in self.reviewed.items():
            if self.is_random.get(image.name):
                drawn[image] = truth
        check_enough([*truths.values(), *drawn.values()], self.promises.wrong)
        pilot_answers = self._answers(pilot)
        labelled_answers = self.answer(self.outputs.folder / "labelled", store, truths)
        drawn_answers = self._answers(drawn)
        compared = self._appearances(store, labelled_answers)
        compared += self._appearances(self.folder, drawn_answers)
        shift = None
        if compared and pilot_answers:
            shift = find_shift(compared, self._appearances(self.folder, pilot_answers))
        if shift is not None and not shift.parts:
            raise RunError(shift.sentence())
        judged = [(records, truths[records[0].image]) for records in labelled_answers]
        judged += [(records, drawn[records[0].image]) for records in drawn_answers]
        return prove(judged, pilot_answers, self.promises), shift

    def _pilot(self, labelled: set[Path | None]) -> list[ImageFile]:
        """Return the images whose answers fix the rules: the same at every look."""
        if earlier := self._earlier_pilot():
            return earlier
        unlabelled = []
        for image in self.images:
            if path_of(self.folder, image) not in labelled:
                unlabelled.append(image)
        if not unlabelled:
            raise RunError(f"all {len(self.images)} images are labelled already; give others")
        pilot = random.Random(_SEED).sample(unlabelled, min(_MAX_PILOT, len(unlabelled)))
        names = json.dumps([image.name for image in pilot])
        self.outputs.write(self.outputs.folder / "pilot.json", names)
        return pilot

    def _earlier_pilot(self) -> list[ImageFile]:
        path = self.outputs.folder / "pilot.json"
        names = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        by_name = {image.name: image for image in self.images}
        return [by_name[name] for name in names if name in by_name]

    def _appearances(self, store: ImageStore, answers: Iterable[Records]) -> list[Appearance]:
        labels = self.job.requested_labels()
        appearances = []
        for records in answers:
            appearances.append(appearance(records, store.read(records[0].image), labels))
        return appearances

    def _write(
        self,
        dataset_format: DatasetFormat,
        answers: Sequence[Records],
        guarantee: Guarantee,
        unlike: set[str],
    ) -> Path:
        """Write proved labels and a person's, none in unlike images; list the rest for review."""
        self.outputs.write(
            self.outputs.folder / "guarantee.json", json.dumps(guarantee.document(), indent=1)
        )
        if any(has_text(records[0]) for records in answers):
            accepted = []
            review = []
            for records in answers:
                record, is_complete = self._accepted_text(records, guarantee, unlike)
                if record is not None:
                    accepted.append(record)
                if not is_complete:
                    review.append(records)
            path = self._write_texts("review.jsonl", review)
            folder = self.folder.path
            dataset = write_dataset(dataset_format, self.outputs, folder, accepted, self.job)
        else:
            agreements = [self._accepted_boxes(records, guarantee, unlike) for records in answers]
            review = [image.records for image in agreements if image.differing]
            path = self.outputs.folder / "review.json"
            folder = self.folder.path
            dataset = write_consensus(dataset_format, self.outputs, folder, agreements, self.job)
        self.sentences.append(f"{len(review)} images are to be reviewed, see {path}")
        return dataset

    def _accepted_boxes(
        self, records: Records, guarantee: Guarantee, unlike: set[str]
    ) -> Agreement:
        image = records[0].image
        truth = self.reviewed.get(image)
        if isinstance(truth, ObjectsTruth):
            return _true_boxes(records, truth)
        if image.name in unlike:
            return agreement(records, guarantee.tolerance.min_iou, NEVER)
        return guarantee.accept(records)

    def _accepted_text(
        self, records: Records, guarantee: Guarantee, unlike: set[str]
    ) -> tuple[Record | None, bool]:
        """Return the record of an accepted text or regions; False if a text is left to a person."""
        record = records[0]
        truth = self.reviewed.get(record.image)
        if isinstance(truth, TextsTruth):
            answer = replace(record.answer, result=TextResult(truth.texts[0]))
            return replace(record, answer=answer), True
        if record.image.name in unlike:
            return None, False
        accepted, left = guarantee.accept_text(records)
        return accepted, not left

    def _write_texts(self, name: str, answers: Iterable[Records]) -> Path:
        rows = []
        for records in answers:
            texts = [record.answer for record in records]
            rows.append({"image": records[0].image.name, "answers": to_json(texts)})
        return self.outputs.write_lines(self.outputs.folder / name, rows)

    def _write_thresholds(self, path: Path, guarantee: Guarantee, models: Iterable[Model]) -> None:
        (model,) = [served for served in models if served.id == self.job.model]
        fields = self.job.fields()
        common = {
            "model": fields.pop("model"),
            "checkpoint": model.checkpoint,
            "precision": model.precision,
            "calibration": model.calibration,
            "fields": fields,
        }
        rows = [common | proof for proof in guarantee.proofs()]
        self.outputs.write(path, json.dumps({"proofs": rows}, indent=1) + "\n")
        shares = ", ".join(f"{row['min_precision']:g}" for row in rows)
        logger.info("%s has what is proved for the service: min_precision %s", path, shares)

    def _suggest_random(self, number: int) -> str | None:
        """Suggest images drawn at random; return where they are, None if there are none."""
        known = {image.name for image in self._earlier_pilot()} | self.is_random.keys()
        others = [image for image in self.images if image.name not in known]
        rng = random.Random(len(self.is_random))
        drawn = rng.sample(others, min(number, len(others)))
        if not drawn:
            return None
        self._record_suggestions([image.name for image in drawn], is_random=True)
        path = self._write_suggested(self._answers(drawn))
        return f"{len(drawn)} images drawn at random are in {path}"

    def _suggest_most_left(
        self, answers: Sequence[Records], guarantee: Guarantee, number: int
    ) -> None:
        gains = {}
        for records in answers:
            name = records[0].image.name
            gain = labels_left(records, guarantee)
            if gain and name not in self.is_random:
                gains[name] = gain
        names = sorted(gains, key=lambda name: (-gains[name], name))[:number]
        suggested = [records for records in answers if records[0].image.name in names]
        self._record_suggestions(names, is_random=False)
        path = self._write_suggested(suggested)
        self.sentences.append(f"{len(suggested)} images to label next are in {path}")

    def _record_suggestions(self, names: Sequence[str], is_random: bool) -> None:
        """Record images before a person sees them."""
        self.is_random |= dict.fromkeys(names, is_random)
        rows = [{"image": name, "is_random": value} for name, value in self.is_random.items()]
        self.outputs.write_lines(self.outputs.folder / "suggestions.jsonl", rows)

    def _write_suggested(self, answers: Sequence[Records]) -> Path:
        if answers and has_text(answers[0][0]):
            return self._write_texts("suggested.jsonl", answers)
        min_iou = self.promises.tolerance.min_iou
        review = [agreement(records, min_iou, NEVER) for records in answers]
        write_review(self.outputs, "suggested_", review, self.job)
        return self.outputs.folder / "suggested_review.json"


def promises_of(options: GuaranteeOptions, min_iou: float) -> Promises:
    missed = None
    if options.max_missed is not None:
        missed = Promise(options.max_missed, options.confidence)
    wrong = Promise(options.max_wrong or DEFAULT_MAX_WRONG, options.confidence)
    return Promises(wrong, missed, Tolerance(min_iou, options.max_cer))


def read_truths(path: Path, images: Path | None, job: Job) -> tuple[Truths, ImageStore]:
    """Read the true labels for a job; raise `RunError` if there are none.

    An image may have several lines in its file.
    """
    dataset = read_dataset(path, images)
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
        raise RunError(f"{path} has no true labels for {job.task}; {dataset.note}")
    return truths, dataset.store


def path_of(store: ImageStore, image: ImageFile) -> Path | None:
    """Return where an image is; None if it is a row of a file."""
    return (store.path / image.name).resolve() if isinstance(store, Folder) else None


def _true_boxes(records: Records, truth: ObjectsTruth) -> Agreement:
    answer = records[0].answer
    boxes: list[Box] = []
    for true in truth.objects:
        if not isinstance(answer.result, InstancesResult):
            boxes.append(Detection(true.box_xyxy, true.label, 1.0))
        elif true.segmentation is None:
            boxes.append(Instance(true.box_xyxy, true.label, 1.0, (corners(true.box_xyxy),)))
        else:
            runs = run_lengths(true.segmentation, answer.image)
            counts = runs["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            mask = RunLengthMask(tuple(runs["size"]), text)
            boxes.append(Instance(true.box_xyxy, true.label, 1.0, mask=mask))
    return Agreement(records, tuple(boxes), (1.0,) * len(boxes), ())


def labels_left(records: Records, guarantee: Guarantee) -> float:
    """Return the number of labels that are not accepted, those far from the threshold for less."""
    threshold = guarantee.accepting.rule.min_confidence
    if has_text(records[0]):
        _, confidences = guarantee.accept_text(records)
    else:
        agreed = agreement(records, guarantee.tolerance.min_iou, 0.0)
        num_accepted = len(guarantee.accept(records).confidences)
        confidences = sorted(agreed.confidences)[: len(agreed.confidences) - num_accepted]
        confidences += [box.score for _, box in agreed.differing]
    return sum(1 - min(abs(confidence - threshold), 1) for confidence in confidences)
