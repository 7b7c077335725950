from typing import Any

import jsonschema
import pytest

from tasks.errors import ParameterError
from tasks.table import TASKS, parse_parameters

VALUES: list[dict[str, Any]] = [
    {},
    {"detail": "short"},
    {"detail": "text", "region": [0, 0, 1, 1]},
    {"language": "de", "detail": "detailed"},
    {"language": "klingon"},
    {"labels": ["a"]},
    {"labels": []},
    {"labels": ["a;b"]},
    {"labels": ["x" * 201]},
    {"labels": ["a", "a"]},
    {"labels": [str(n) for n in range(33)]},
    {"caption": "a cat"},
    {"caption": "a cat", "phrases": ["a cat"]},
    {"phrases": ["a cat"]},
    {"phrase": "a cat"},
    {"phrase": ""},
    {"phrase": "a", "region": [0, 0, 1, 1]},
    {"region": [0, 0, 1, 1]},
    {"region": [0, 0, 1]},
    {"region": [-1, 0, 1, 1]},
    {"question": "why?"},
    {"question": "why?", "language": "zh"},
    {"question": "x" * 1001},
    {"unknown": 1},
]


@pytest.mark.parametrize("task_id", TASKS)
def test_schema_accepts_what_is_parsed(task_id: str) -> None:
    schema = TASKS[task_id].json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    jsonschema.Draft202012Validator.check_schema(schema)
    for values in VALUES:
        is_parsed = True
        try:
            parse_parameters(TASKS[task_id], values)
        except ParameterError:
            is_parsed = False
        assert validator.is_valid(values) == is_parsed, values
