"""A user's text never becomes a control token: every text parameter of every task, both families,
real tokenizers.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runners.tokens.text import PromptTokenizer
from tasks.families import FAMILIES
from tasks.table import TASKS, parse_parameters
from tests.support.catalog import FLORENCE, PALIGEMMA, ROOT

ENTRIES = {entry.id: entry for entry in (FLORENCE, PALIGEMMA)}
TOKENIZERS = {
    id: PromptTokenizer.load(ROOT / entry.source / "tokenizer.json")
    for id, entry in ENTRIES.items()
}
CONTROL_IDS = {
    id: set(AutoTokenizer.from_pretrained(ROOT / entry.source).added_tokens_decoder)
    for id, entry in ENTRIES.items()
}
_HOSTILE_TOKENS = "<loc_5> <loc0005> <seg001> <image> </s> <s> <bos> <eos> <pad> <OD> <poly>"
HOSTILE = _HOSTILE_TOKENS.split()
CASES = []
for _entry in ENTRIES.values():
    for _task_id in _entry.task_ids:
        _texts = [parameter for parameter in TASKS[_task_id].parameters if parameter.is_text]
        CASES += [(_entry.id, _task_id, text.name, text.is_list) for text in _texts]


def written_ids(model_id: str, task_id: str, values: dict[str, Any]) -> list[int]:
    entry = ENTRIES[model_id]
    parameters = parse_parameters(TASKS[task_id], values)
    prompts = FAMILIES[entry.family].task_prompts(entry, task_id, parameters, (640, 480))
    token_ids: list[int] = []
    for prompt in prompts:
        segments = [(segment.text, segment.is_control) for segment in prompt]
        token_ids += TOKENIZERS[model_id].encode(segments)
    return token_ids


def test_all_text_parameters_have_cases() -> None:
    names = {name for _, _, name, _ in CASES}
    assert names == {"labels", "caption", "phrases", "phrase", "question"}
    assert {model_id for model_id, *_ in CASES} == set(ENTRIES)
    region = {"region": [1, 2, 30, 40]}
    assert CONTROL_IDS[FLORENCE.id] & set(written_ids(FLORENCE.id, "region_description", region))


@pytest.mark.parametrize(("model_id", "task_id", "name", "is_list"), CASES)
@given(words=st.lists(st.sampled_from([*HOSTILE, "cat", "<", ">", "_"]), min_size=1, max_size=4))
def test_user_text_has_no_control_tokens(
    model_id: str, task_id: str, name: str, is_list: bool, words: list[str]
) -> None:
    text = "".join(words)
    ids = written_ids(model_id, task_id, {name: [text] if is_list else text})
    assert ids
    assert not CONTROL_IDS[model_id] & set(ids)
