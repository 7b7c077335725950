r"""Images of a folder that are suggested to a person, and their labels when they come back.

    suggestions.jsonl   {"image": name, "is_random": true or false}\n…

Where nothing is proved yet, they are drawn at random: their labels are a part of the proof. Where
something is proved, they are the images that it leaves most to a person: boxes that are not
accepted count, most those near the threshold. They are not a random sample, and they depend on the
proof so far. Their labels are therefore final in the dataset, but never enter the proof or the
choice of what is tried. Knows no requests.
"""

import json
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Self

from diptych_client.annotate.consensus import Agreement
from diptych_client.annotate.dataset_files import Box
from diptych_client.annotate.journal import Record
from diptych_client.annotate.judging import Truth
from diptych_client.annotate.proposals import agreement, has_text
from diptych_client.annotate.proving import Guarantee, Records
from diptych_client.evaluation.metrics.detection import run_lengths
from diptych_client.evaluation.questionnaire import ObjectsTruth, TextsTruth
from diptych_client.geometry import RunLengthMask
from diptych_client.inputs import ImageFile
from diptych_client.long_runs import Outputs
from diptych_client.results import Detection, Instance, InstancesResult, TextResult

_FILE = "suggestions.jsonl"


@dataclass(frozen=True, slots=True)
class Suggestions:
    """The images that were suggested so far, and whether they were drawn at random."""

    outputs: Outputs
    is_random: Mapping[str, bool]

    @classmethod
    def read(cls, outputs: Outputs) -> Self:
        path = outputs.folder / _FILE
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return cls(outputs, {row["image"]: row["is_random"] for row in rows})

    def add(self, images: Sequence[str], is_random: bool) -> None:
        """Record images before a person sees them."""
        known = dict(self.is_random) | dict.fromkeys(images, is_random)
        rows = [{"image": name, "is_random": value} for name, value in known.items()]
        self.outputs.write(
            self.outputs.folder / _FILE, "".join(json.dumps(row) + "\n" for row in rows)
        )

    def drawn(self, images: Sequence[ImageFile], known: Set[str], number: int) -> list[ImageFile]:
        """Return images drawn at random from those that are neither known nor suggested."""
        others = [each for each in images if each.name not in known | self.is_random.keys()]
        rng = random.Random(len(self.is_random))
        return rng.sample(others, min(number, len(others)))

    def most_left(
        self, answers: Sequence[Records], guarantee: Guarantee, number: int
    ) -> list[Records]:
        """Return the answers to the images that a proof leaves most to a person."""
        gains = {}
        for records in answers:
            name = records[0].image.name
            gain = labels_left(records, guarantee)
            if gain and name not in self.is_random:
                gains[name] = gain
        chosen = set(sorted(gains, key=lambda name: (-gains[name], name))[:number])
        return [records for records in answers if records[0].image.name in chosen]


def labels_left(records: Records, guarantee: Guarantee) -> float:
    """Return the number of labels that are not accepted, those far from the threshold for less."""
    threshold = guarantee.accepting.rule.min_confidence
    if has_text(records[0]):
        confidences = guarantee.left_texts(records)
    else:
        found = agreement(records, guarantee.tolerance.min_iou, 0.0)
        accepted = guarantee.accept(records).confidences
        left = sorted(found.confidences)[: len(found.confidences) - len(accepted)]
        confidences = [*left, *(box.score for _, box in found.differing)]
    return sum(1 - min(abs(each - threshold), 1) for each in confidences)


def final_boxes(records: Records, truth: ObjectsTruth) -> Agreement:
    """Return the true objects of an image in place of the answered ones."""
    answer = records[0].answer
    boxes: list[Box] = []
    for each in truth.objects:
        if isinstance(answer.result, InstancesResult) and each.segmentation is not None:
            runs = run_lengths(each.segmentation, answer.image)
            counts = runs["counts"]
            text = counts.decode() if isinstance(counts, bytes) else counts
            mask = RunLengthMask(tuple(runs["size"]), text)
            boxes.append(Instance(each.box_xyxy, each.label, 1.0, mask=mask))
        elif isinstance(answer.result, InstancesResult):
            x1, y1, x2, y2 = each.box_xyxy
            ring = ((x1, y1), (x2, y1), (x2, y2), (x1, y2))
            boxes.append(Instance(each.box_xyxy, each.label, 1.0, (ring,)))
        else:
            boxes.append(Detection(each.box_xyxy, each.label, 1.0))
    return Agreement(records, tuple(boxes), (1.0,) * len(boxes), ())


def final_text(records: Records, truth: Truth) -> Record:
    """Return the true text of an image in place of the answered one."""
    assert isinstance(truth, TextsTruth)
    first = records[0]
    return replace(first, answer=replace(first.answer, result=TextResult(truth.texts[0])))
