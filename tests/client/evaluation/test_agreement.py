"""PairAgreement of two models without labels."""

from diptych_client.evaluation.evaluator import ClassAgreement, PairAgreement
from diptych_client.evaluation.questions import ClassNames
from tests.support.evaluations import detection, prediction

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)


def agreement() -> PairAgreement:
    return PairAgreement("A", "B", ClassNames((), {"auto": "car"}))


def test_boxes_are_compared_by_class_and_place() -> None:
    found = agreement()
    first = prediction([detection("car", BOX), detection("dog", FAR)])
    outcome = found.add(
        first, prediction([detection("Auto", BOX), detection("cat", FAR), detection("dog", BOX)])
    )
    assert found.by_class() == {
        "car": ClassAgreement(1, 0, 0, 0),
        "dog": ClassAgreement(0, 0, 1, 1),
    }
    assert outcome.error == 1 - 2 / 5
    assert outcome.kinds == {"found by both", "other label", "only B"}


def test_two_empty_answers_agree() -> None:
    found = agreement()
    assert found.add(prediction(), prediction()).error == 0
    assert found.add(prediction([detection("car", BOX)]), prediction()).kinds == {"only A"}
    assert found.scores == [1, 0]


def test_texts_are_compared_by_edit_distance() -> None:
    found = agreement()
    assert found.add(prediction(text="abcd"), prediction(text="abcx")).error == 0.25
    assert found.add(prediction(text=""), prediction(text="")).kinds == {"same text"}
