"""Phrases: accuracy at IoU 0.5 of the box, and mean IoU of the mask, as for RefCOCO.

Source: Yu et al., 2016, arXiv 1608.00272, section 5 (a box is right if IoU > 0.5); big_vision,
evaluators/proj/paligemma/transfers/segmentation.py (mean of the masks' IoU). The best scored answer
to a phrase counts; none counts as IoU 0.
"""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from pycocotools import mask as coco_mask

from diptych_client.evaluation.answer_log import Prediction
from diptych_client.evaluation.metrics.detection import encoded_mask, run_lengths
from diptych_client.evaluation.metrics.outcome import Details, Outcome
from diptych_client.evaluation.questionnaire import PhrasesTruth, Truth
from diptych_client.evaluation.statistics import Metric, Ratio
from diptych_client.matching import SAME_OBJECT_IOU, Kind, pairwise_iou
from diptych_client.results import Instance, Item, box_of, label_of


@dataclass(frozen=True, slots=True)
class JudgedPhrase:
    """The best answer to a phrase; an IoU is None where truth or answer lacks the shape."""

    item: Item | None
    box_iou: float | None
    mask_iou: float | None

    @property
    def kind(self) -> Kind:
        if self.item is None:
            return "missed"
        iou = self.box_iou if self.mask_iou is None else self.mask_iou
        return "right" if (iou or 0.0) >= SAME_OBJECT_IOU else "badly placed"


@dataclass(slots=True)
class PhrasesMeasure:
    """One model's boxes and masks of phrases; sums over the phrases of each sample."""

    # right, number of phrases with a box
    box_hits: list[tuple[float, int]] = field(default_factory=list)
    # sum of IoU, number of phrases with a mask
    mask_ious: list[tuple[float, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, truth: Truth, prediction: Prediction) -> Outcome:
        assert isinstance(truth, PhrasesTruth)
        judged = judge(truth, prediction)
        boxes = [each.box_iou for each in judged if each.box_iou is not None]
        masks = [each.mask_iou for each in judged if each.mask_iou is not None]
        kinds = [each.kind for each in judged]
        self.box_hits.append((float(sum(iou >= SAME_OBJECT_IOU for iou in boxes)), len(boxes)))
        self.mask_ious.append((sum(masks), len(masks)))
        self.kinds.update(kinds)
        share_right = kinds.count("right") / max(len(kinds), 1)
        return Outcome(1 - share_right, frozenset(kinds))

    def metrics(self) -> list[Metric]:
        found = []
        for name, rows in (("mask mIoU", self.mask_ious), ("accuracy at IoU 0.5", self.box_hits)):
            numerators, denominators = np.array(rows, dtype=np.float64).reshape(-1, 2).T
            if denominators.any():
                found.append(Metric(name, Ratio(numerators, denominators)))
        return found

    def details(self) -> Details:
        return Details(kinds=self.kinds)

    def scored(self) -> None:
        return None


def judge(truth: PhrasesTruth, prediction: Prediction) -> list[JudgedPhrase]:
    """Return the best answer to each phrase."""
    judged = []
    for phrase in truth.phrases:
        name = phrase.phrase.casefold()
        answers = [each for each in prediction.items if label_of(each).casefold() == name]
        item = max(answers, key=lambda each: each.score, default=None)
        box_iou = None
        mask_iou = None
        if phrase.box_xyxy is not None:
            boxes = [] if item is None else [box_of(item)]
            box_iou = float(pairwise_iou([phrase.box_xyxy], boxes).sum())
        if phrase.segmentation is not None:
            if item is None:
                mask_iou = 0.0
            elif isinstance(item, Instance):
                true_mask = run_lengths(phrase.segmentation, prediction.image)
                mask = encoded_mask(item.to_mask(prediction.image))
                mask_iou = float(coco_mask.iou([mask], [true_mask], [0])[0, 0])
        judged.append(JudgedPhrase(item, box_iou, mask_iou))
    return judged
