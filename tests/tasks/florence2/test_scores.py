import math
from typing import Any

import pytest

from tasks.florence2.parsing import parse_answer
from tasks.parameters import parse_parameters
from tasks.table import TASKS
from tests.support.answers import generated
from tests.support.catalog import FLORENCE

IMAGE_WH = (1000, 500)


BOX = "<loc_10><loc_20><loc_30><loc_40>"


OTHER = "<loc_100><loc_200><loc_300><loc_400>"


TRIANGLE = "<loc_0><loc_0><loc_8><loc_0><loc_8><loc_4>"


LOGPROBS = {"red": -1.0, "car": -3.0, "dog": -5.0, "<sep>": -99.0} | {
    f"<loc_{n}>": -0.01 * n for n in range(1000)
}


def scores(task_id: str, text: str, **values: Any) -> list[float]:
    answer = generated(text, LOGPROBS.__getitem__)
    result: Any = parse_answer(
        FLORENCE,
        task_id,
        parse_parameters(TASKS[task_id], values),
        [answer],
        IMAGE_WH,
        "polygon",
        None,
    )
    found = getattr(result, TASKS[task_id].result_kind)
    return [math.log(each.score) for each in found]


def test_a_boxs_score_is_of_its_label_and_its_own_locations() -> None:
    label = -1 - 3
    first = -0.01 * 100 / 4
    second = -0.01 * 1000 / 4
    dog = -5
    expected = [label + first, label + second, dog + first]
    assert scores("object_detection", f"red car{BOX}{OTHER}dog{BOX}") == pytest.approx(expected)


def test_a_proposals_score_is_of_its_locations() -> None:
    assert scores("region_proposal", f"dog{BOX}") == pytest.approx([-0.01 * 100 / 4])


@pytest.mark.parametrize(("label", "logprob"), [("", 0), ("red car", -1 - 3)])
def test_an_instances_score_is_of_its_label_and_locations_not_of_separators(
    label: str, logprob: float
) -> None:
    expected = [logprob - 0.01 * (20 + 20) / 12]
    text = f"{label}{TRIANGLE}<sep>{TRIANGLE}"
    assert scores("instance_segmentation", text, phrase="dog") == pytest.approx(expected)
