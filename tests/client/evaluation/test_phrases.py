"""Phrases: the best scored answer counts."""

import numpy as np
import pytest

from diptych_client.evaluation.dataset import TruePhrase
from diptych_client.evaluation.evaluator import PhrasesMeasure, judge_phrases
from diptych_client.evaluation.questions import PhrasesTruth
from diptych_client.results import Instance
from tests.support.evaluations import detection, prediction

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)
RING = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
HALF = ((0.0, 0.0), (10.0, 0.0), (10.0, 5.0), (0.0, 5.0))


def values(measure: PhrasesMeasure) -> dict[str, float]:
    return {
        metric.name: metric.estimator.value(np.ones(len(measure.box_hits)))
        for metric in measure.metrics()
    }


def test_a_phrase_is_right_at_iou_one_half() -> None:
    measure = PhrasesMeasure()
    truth = PhrasesTruth((TruePhrase("left dog", BOX), TruePhrase("car", BOX)))
    better = detection("Left dog", (0.0, 0.0, 10.0, 5.0), 0.9)
    outcome = measure.add(
        truth, prediction([detection("left dog", FAR, 0.2), better, detection("car", FAR)])
    )
    assert values(measure) == {"accuracy at IoU 0.5": 0.5}
    assert outcome.error == 0.5
    assert outcome.kinds == {"right", "badly placed"}


def test_no_answer_is_wrong() -> None:
    measure = PhrasesMeasure()
    assert measure.add(PhrasesTruth((TruePhrase("car", BOX),)), prediction()).kinds == {"missed"}
    assert values(measure) == {"accuracy at IoU 0.5": 0}


def test_a_phrase_without_a_mask_is_judged_by_its_box() -> None:
    truth = PhrasesTruth((TruePhrase("car", BOX, RING), TruePhrase("dog", BOX)))
    items = [Instance(BOX, "car", 0.9, (HALF,)), Instance(FAR, "dog", 0.9, (HALF,))]
    assert [each.kind for each in judge_phrases(truth, prediction(items))] == [
        "right",
        "badly placed",
    ]


def test_the_mask_iou_is_that_of_pixels() -> None:
    measure = PhrasesMeasure()
    for items in ([Instance(BOX, "car", 0.9, (HALF,))], []):
        measure.add(PhrasesTruth((TruePhrase("car", None, RING),)), prediction(items))
    assert values(measure) == {"mask mIoU": pytest.approx(0.25)}
