from typing import Any

import pytest

from tasks.errors import UnsupportedTask
from tasks.families import FAMILIES
from tasks.table import FAMILY_NAMES, TASKS, Family, parse_parameters
from tests.support.answers import generated
from tests.support.catalog import FLORENCE, MASK_DECODER, PALIGEMMA

VALUES: dict[str, dict[str, Any]] = {
    "open_vocabulary_detection": {"labels": ["a", "b"]},
    "phrase_grounding": {"phrases": ["a", "b"]},
    "instance_segmentation": {"phrase": "a"},
    "region_description": {"region": [0, 0, 10, 10]},
    "visual_question_answering": {"question": "why?"},
}
RESULT_NAMES = {"text": "TextResult", "detections": "DetectionsResult"}
RESULT_NAMES |= {"instances": "InstancesResult", "text_regions": "TextRegionsResult"}


def test_every_family_has_a_language() -> None:
    assert tuple(FAMILIES) == FAMILY_NAMES


@pytest.mark.parametrize(
    ("family", "task_id"),
    [(e.family, task_id) for e in (FLORENCE, PALIGEMMA) for task_id in e.task_ids],
)
def test_every_offered_task_has_a_prompt_and_a_result_of_its_kind(
    family: Family, task_id: str
) -> None:
    entry = {"florence2": FLORENCE, "paligemma": PALIGEMMA}[family]
    parameters = parse_parameters(TASKS[task_id], VALUES.get(task_id, {}))
    prompts = FAMILIES[family].task_prompts(entry, task_id, parameters, (640, 480))
    assert all(prompts)
    answers = [generated("") for _ in prompts]
    result = FAMILIES[family].parse_answer(
        entry, task_id, parameters, answers, (640, 480), "polygon", MASK_DECODER
    )
    assert type(result).__name__ == RESULT_NAMES[TASKS[task_id].result_kind]
    assert result.is_parsed


def test_both_families_refuse_what_they_do_not_know_in_the_same_way() -> None:
    in_french = parse_parameters(TASKS["captioning"], {"language": "fr"})
    paragraph = parse_parameters(TASKS["captioning"], {"detail": "paragraph"})
    with pytest.raises(UnsupportedTask, match="florence-2-mini"):
        FAMILIES["florence2"].task_prompts(FLORENCE, "captioning", in_french, (640, 480))
    with pytest.raises(UnsupportedTask, match="paligemma-mini"):
        FAMILIES["paligemma"].task_prompts(PALIGEMMA, "captioning", paragraph, (640, 480))
