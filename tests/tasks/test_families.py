from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tasks.florence2.grammar
import tasks.paligemma.grammar
from tasks.catalog import parse_entry
from tasks.families import FAMILIES
from tasks.parsing import AnsweredTask, Location
from tasks.table import FAMILY_NAMES, TASKS, Family, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import FLORENCE, MASK_DECODER, PALIGEMMA

ENGINE = parse_entry(
    {"id": "qwen", "family": "openai", "url": "http://a/v1", "model": "q", "dialect": "qwen3-vl"}
)
ENTRIES = {"florence2": FLORENCE, "paligemma": PALIGEMMA, "openai": ENGINE}
VALUES: dict[str, dict[str, Any]] = {
    "open_vocabulary_detection": {"labels": ["a", "b"]},
    "phrase_grounding": {"phrases": ["a", "b"]},
    "instance_segmentation": {"phrase": "a"},
    "region_description": {"region": [0, 0, 10, 10]},
    "visual_question_answering": {"question": "why?"},
}
BOX_TASKS = ("object_detection", "open_vocabulary_detection", "phrase_grounding")
RESULT_NAMES = {"text": "TextResult", "detections": "DetectionsResult"}
RESULT_NAMES |= {"instances": "InstancesResult", "text_regions": "TextRegionsResult"}
GRAMMARS = [tasks.florence2.grammar, tasks.paligemma.grammar]
SIDES = st.integers(1, 20_000)


def dequantized(grammar: Any, bin_index: int, side_px: int) -> float:
    """Return the position of a bin on a side; Florence-2's function returns points."""
    if grammar is tasks.paligemma.grammar:
        return tasks.paligemma.grammar.dequantize(bin_index, side_px)
    location = Location(bin_index, (0, 0))
    ((x, y),) = tasks.florence2.grammar.dequantize((location, location), (side_px, 2 * side_px))
    assert y == pytest.approx(2 * x)
    return x


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_offered_tasks_have_prompts_and_results(family: Family) -> None:
    entry = ENTRIES[family]
    for task_id in entry.task_ids:
        parameters = parse_parameters(TASKS[task_id], VALUES.get(task_id, {}))
        prompts = FAMILIES[family].task_prompts(entry, task_id, parameters, (640, 480))
        assert all(prompts)
        empty = "[]" if entry is ENGINE and task_id in BOX_TASKS else ""
        answers = [generated(empty) for _ in prompts]
        task = AnsweredTask(entry, task_id, parameters, (640, 480), mask_decoder=MASK_DECODER)
        result = FAMILIES[family].parse_answer(task, answers)
        assert type(result).__name__ == RESULT_NAMES[TASKS[task_id].result_kind]
        assert (result.is_parsed, result.items) == (True, ())


@pytest.mark.parametrize("grammar", GRAMMARS)
@given(share=st.floats(0, 1), side_px=SIDES)
def test_locations(grammar: ModuleType, share: float, side_px: int) -> None:
    """A bin survives the way to pixels and back, and a position comes back within half a bin."""
    index = grammar.quantize(share * side_px, side_px)
    position_px = dequantized(grammar, index, side_px)
    assert grammar.quantize(position_px, side_px) == index
    bin_px = side_px / {"florence2": 1000, "paligemma": 1023}[grammar.__name__.split(".")[1]]
    assert abs(position_px - share * side_px) <= bin_px / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("grammar", "positions_px", "tokens"),
    [
        (GRAMMARS[0], (64, 48, 320, 480), "<loc_100><loc_100><loc_500><loc_999>"),
        (GRAMMARS[0], (-5, 0, 639.9, 9e9), "<loc_0><loc_0><loc_999><loc_999>"),
        (GRAMMARS[1], (64, 0, 320, 480), "<loc0000><loc0102><loc1023><loc0512>"),
        (GRAMMARS[1], (-5, 0, 640, 9e9), "<loc0000><loc0000><loc1023><loc1023>"),
    ],
)
def test_tokens_of_a_box(grammar: ModuleType, positions_px: Any, tokens: str) -> None:
    assert grammar.box_tokens(positions_px, (640, 480)) == tokens


def test_last_bin_of_paligemma_is_the_border() -> None:
    assert tasks.paligemma.grammar.dequantize(1023, 641) == 641.0
