"""`annotate --labelled`: accepts labels that labelled images prove.

    pilot.json    names of the images whose answers fix the rules that are tested
    order.json    digests of the labelled images in the order of the bets

Bets depend on the order: images of earlier runs come first, others follow by their digests, which
know nothing of the labels. Needs the extra `evaluate`.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych_client.datasets.dataset import read_json
from diptych_client.datasets.formats.reading import read_dataset
from diptych_client.datasets.formats.writing import Target
from diptych_client.datasets.inputs import (
    Folder,
    ImageFile,
    ImageStore,
    Opening,
    Problems,
    open_images,
)
from diptych_client.datasets.long_runs import RunError
from diptych_client.tools.cli.answers import JobRunner
from diptych_client.tools.cli.options import GuaranteeOptions
from diptych_client.tools.cli.terminal import logger, note_problems
from diptych_client.tools.consensus import ANY, Agreement, Records, write_consensus
from diptych_client.tools.guarantee import (
    Guarantee,
    Promise,
    appearance,
    find_repeats,
    prove,
    select_truth,
)
from diptych_client.tools.questions import ObjectsTruth

Known = tuple[Records, ObjectsTruth]

DEFAULT_MAX_WRONG = 0.05
_MAX_PILOT = 200
_SEED = 0
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class GuaranteedRun:
    """The labelling of a folder by what labelled images prove."""

    runner: JobRunner
    target: Target
    images: Sequence[ImageFile]
    options: GuaranteeOptions
    min_iou: float
    problems: Problems
    sentences: list[str] = field(default_factory=list)  # for the user

    def label(self) -> tuple[int, Path]:
        """Write the labels; return the number of labelled images and the path of the dataset.

        Raise `RunError` if nothing is proved, before most images are sent.
        """
        truths, store = self._truths()
        note_problems(self.problems, self.target.outputs)
        guarantee = self._prove(truths, store)
        for sentence in guarantee.sentences():
            self._note(sentence)
        if self.options.thresholds is not None:
            self._write_thresholds(self.options.thresholds, guarantee)
        records = self.runner.run(self.runner.folder, self.images)
        agreements = [guarantee.accept(answered) for answered in records]
        self._write_guarantee(guarantee, agreements)
        dataset, note = write_consensus(self.target, agreements)
        self.sentences.append(note)
        return len(records), dataset

    def _note(self, sentence: str) -> None:
        self.sentences.append(sentence)
        logger.info(sentence)

    def _truths(self) -> tuple[dict[ImageFile, ObjectsTruth], ImageStore]:
        """Read the true labels; raise `RunError` if there are none.

        An image may have several lines in its file.
        """
        options = self.options
        assert options.labelled is not None
        work = self.target.outputs.folder / "labelled" / "input"  # of an archive
        opened = open_images([str(options.labelled)], Opening(work, self.problems))
        images = options.labelled_images
        dataset = read_dataset(opened.path, images, options.split, self.problems)
        truths: dict[ImageFile, ObjectsTruth] = {}
        for labelled in dataset.images:
            truth = select_truth(labelled, self.target.job)
            if truth is not None:
                earlier = truths.get(labelled.image, ObjectsTruth(()))
                truths[labelled.image] = ObjectsTruth((*earlier.objects, *truth.objects))
        if not truths:
            labels = ", ".join(f"{number} {kind}" for kind, number in dataset.labels.items())
            cause = f"it has {labels}" if labels else dataset.note or self.problems.summary()
            task = self.target.job.task
            raise RunError(f"{options.labelled} has no true labels for {task}; {cause}")
        return truths, dataset.store

    def _write_guarantee(self, guarantee: Guarantee, agreements: Sequence[Agreement]) -> None:
        document = asdict(guarantee)
        del document["others"]
        if ANY in guarantee.accepting:
            document["accepting"] = document["accepting"][ANY]
        num_unlike = sum(agreement.is_unlike for agreement in agreements)
        document["share_unlike"] = num_unlike / max(len(agreements), 1)
        path = self.target.outputs.folder / "guarantee.json"
        self.target.outputs.write(path, json.dumps(document, indent=1))

    def _pilot(self, labelled: set[Path | None]) -> list[ImageFile]:
        """Return the images whose answers fix the rules: the same at every look."""
        path = self.target.outputs.folder / "pilot.json"
        by_name = {image.name: image for image in self.images}
        names = _read_texts(path)
        if earlier := [by_name[name] for name in names if name in by_name]:
            return earlier
        unlabelled = []
        for image in self.images:
            if image_path(self.runner.folder, image) not in labelled:
                unlabelled.append(image)
        if not unlabelled:
            raise RunError(f"all {len(self.images)} images are labelled already; give others")
        pilot = random.Random(_SEED).sample(unlabelled, min(_MAX_PILOT, len(unlabelled)))
        self.target.outputs.write(path, json.dumps([image.name for image in pilot]))
        return pilot

    def _prove(self, truths: Mapping[ImageFile, ObjectsTruth], store: ImageStore) -> Guarantee:
        pilot = self._pilot({image_path(store, image) for image in truths})
        folder = self.runner.folder
        pilot_paths = {image_path(folder, image) for image in pilot}
        labelled = [image for image in truths if image_path(store, image) not in pilot_paths]
        answers = self.runner.run(store, labelled)
        known = {}
        for records in answers:
            image = records[0].image
            data = store.read(image)
            digest = blake2b(data, digest_size=_DIGEST_BYTES).hexdigest()
            known[digest] = (appearance(data), (records, truths[image]))
        distinct = self._distinct(known)
        if num_repeats := len(answers) - len(distinct):
            count = f"{num_repeats} of {len(answers)} labelled images"
            self._note(f"{count} nearly repeat others and do not count")
        options = self.options
        promise = Promise(options.max_wrong or DEFAULT_MAX_WRONG, options.confidence)
        pilot_answers = self.runner.run(folder, pilot)
        return prove(distinct, pilot_answers, self.min_iou, promise, options.per_class)

    def _distinct(self, known: Mapping[str, tuple[NDArray[np.float32], Known]]) -> list[Known]:
        """Return known images in the order of the bets, of near-duplicates the first."""
        path = self.target.outputs.folder / "order.json"
        order = _read_texts(path)
        order += sorted(known.keys() - set(order))
        self.target.outputs.write(path, json.dumps(order))
        images = [known[digest] for digest in order if digest in known]
        is_repeat = find_repeats(np.array([tones for tones, _ in images]))
        return [images[index][1] for index in np.flatnonzero(~is_repeat).tolist()]

    def _write_thresholds(self, path: Path, guarantee: Guarantee) -> None:
        with self.runner.connection.client() as client:
            served = {model.id: model for model in client.models()}
        model = served[self.target.job.model]
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


def _read_texts(path: Path) -> list[str]:
    """Return the list of an earlier run; empty before the first one."""
    texts = read_json(path) if path.exists() else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RunError(f"{path} must be a list of texts, got {texts!r:.80}")
    return texts


def image_path(store: ImageStore, image: ImageFile) -> Path | None:
    """Return where an image is; None if it is a row of a file."""
    return (store.path / image.name).resolve() if isinstance(store, Folder) else None
