import json
import math
from pathlib import Path
from typing import Any

import pytest

from runners.adapters.peft import PeftConfig
from wire.artifacts.adapter_folder import CONFIG_FILE, AdapterError

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
MAX_RANK = 16


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"a_later_option": 3}, "a_later_option is 3"),
        ({"r": "two"}, "r is 'two', which is not supported; it must be a whole number of 1 to 16"),
        ({"r": 17}, "r is 17, which is not supported; it must be a whole number of 1 to 16"),
        ({"r": 0}, "r is 0, "),
        ({"r": True}, "r is True, "),
        ({"r": None}, "r is None, "),
        ({"rank_pattern": {"k_proj": 200_000}}, "rank_pattern is 200000, "),
        ({"rank_pattern": ["q_proj"]}, r"rank_pattern is \['q_proj'\], .* a mapping by patterns"),
        (
            {"alpha_pattern": {"(?=q)": 1}},
            r"alpha_pattern has the pattern '\(\?=q\)', which is not supported",
        ),
        ({"alpha_pattern": {"q_proj": "8"}}, "alpha_pattern is '8', .* a number of at most 1e"),
        ({"lora_alpha": math.nan}, "lora_alpha is nan, "),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"use_rslora": "false"}, "use_rslora is 'false', .* true or false"),
        ({"modules_to_save": "norm"}, "modules_to_save is 'norm', .* 100 names at most"),
        ({"modules_to_save": ["norm"] * 101}, "modules_to_save is .* 100 names at most"),
        ({"target_parameters": nested(900)}, r"target_parameters is \[{7}\.\.\.\]"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_unsupported_option_is_named(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    (tmp_path / CONFIG_FILE).write_text(json.dumps(CONFIG | config))
    with pytest.raises(AdapterError, match=named):
        PeftConfig.read(tmp_path, MAX_RANK)
