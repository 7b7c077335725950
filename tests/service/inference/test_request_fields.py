import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.inference.request_fields import (
    MAX_BEAMS,
    MAX_NEW_TOKENS,
    PARAMETERS,
    CompareFields,
    GenerationFields,
    PredictFields,
    parse_fields,
)
from tasks.table import TASKS


def refusal(
    fields: dict[str, Any], fields_class: type[GenerationFields] = PredictFields
) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_fields(fields_class, fields)
    return caught.value


@pytest.mark.parametrize("fields_class", [PredictFields, CompareFields])
def test_unknown_field(fields_class: type[GenerationFields]) -> None:
    error = refusal({"task": "ocr", "labls": ["dog"]}, fields_class)
    assert error.param == "labls"
    assert "unknown field 'labls' (did you mean labels?)" in error.message
    names = ["image", *fields_class.model_fields, *sorted(PARAMETERS)]
    assert error.message.endswith(f"; the fields are {', '.join(names)}")


@pytest.mark.parametrize("task", ["", "detect", "OCR", "ocr ", "\ud800", "x" * 5000])
def test_unknown_task_lists_the_tasks(task: str) -> None:
    error = refusal({"task": task})
    assert error.param == "task"
    assert "unknown task" in error.message
    assert error.message.endswith(", ".join(TASKS))
    assert len(error.message) < 500


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("max_new_tokens", [1, MAX_NEW_TOKENS, None]),
        ("num_beams", [1, 3, MAX_BEAMS, None]),
        ("temperature", [0, 0.0, 1e-6, 0.7, 2, 2.0]),
        ("top_p", [0.001, 0.5, 1, 1.0]),
        ("constrained", [True, False]),
        ("seed", [0, 2**63 - 1, None]),
        ("mask_format", ["polygon", "rle"]),
        ("min_score", [0, 0.5, 1, 1.0]),
        ("nms_iou", [0, 0.5, 1, None]),
        ("tiles", ["off", "auto", 1, 64]),
        ("model", ["a", None]),
    ],
)
def test_values_within_bounds(name: str, allowed: list[object]) -> None:
    for value in allowed:
        values, _ = parse_fields(PredictFields, {"task": "ocr", name: value})
        assert getattr(values, name) == value


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("max_new_tokens", [0, -1, MAX_NEW_TOKENS + 1, 10**400, 1.5, 2.0, "12", True, [1], {}]),
        ("num_beams", [0, MAX_BEAMS + 1, "1", True, 1.0]),
        ("top_p", [0, -0.1, 1.001, math.nan, None, "0.5", True]),
        ("constrained", [0, 1, None, "true", "no"]),
        ("temperature", [-0.1, 1e-300, 9.9e-7, 2.001, math.inf, math.nan, None, "0.5", True, [0]]),
        ("seed", [-1, 2**63, 0.5, "7", False]),
        ("mask_format", ["mask", "RLE", "", None, 1]),
        ("min_score", [-0.1, 1.001, math.nan, None, "0.5", True]),
        ("nms_iou", [-0.1, 1.001, math.nan, "0.5", True]),
        ("tiles", ["on", 0, None, True, [2, 3], {"rows": 2}, "x" * 5000]),
        ("overlap", [-0.1, 0.501, math.nan, None, "0.2"]),
        ("min_object_px", [0, 10_001, 1.5, None, "16"]),
        ("model", [1, True, ["a"], {}]),
        ("task", [1, None, True, ["ocr"]]),
    ],
)
def test_values_out_of_bounds(name: str, refused: list[object]) -> None:
    for value in refused:
        error = refusal({"task": "ocr", name: value})
        assert error.param == name, value
        assert error.message.startswith(f"{name} is "), value
        assert len(error.message) < 300


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temperature": 1e-300}, "temperature", "is 1e-300: it must be 0 or from 1e-06 to 2"),
        ({"task": "captioning", "tiles": "auto"}, "tiles", "captioning is about the whole image"),
        ({"overlap": 0.2}, "overlap", "overlap needs tiles, which is off"),
        ({"min_object_px": 16, "tiles": "off"}, "min_object_px", "needs tiles, which is off"),
        ({"num_beams": 3, "temperature": 0.5}, "num_beams", "beam search needs temperature 0"),
        ({"min_precision": 0.9, "min_score": 0.0}, "min_score", "chooses the score itself"),
    ],
)
def test_fields_that_exclude_each_other(fields: dict[str, Any], param: str, message: str) -> None:
    error = refusal({"task": "ocr"} | fields)
    assert error.param == param
    assert message in error.message


@pytest.mark.parametrize("models", [[], ["a"] * 33, "a", [1], [None], {}, True])
def test_comparison_takes_1_to_32_models(models: object) -> None:
    assert refusal({"task": "ocr", "models": models}, CompareFields).param == "models"
    values, _ = parse_fields(CompareFields, {"task": "ocr", "models": ["b"] * 32})
    assert values.models == ["b"] * 32


TEXTS = st.text(st.sampled_from("aB1 \0\n;ä😀"), max_size=8)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=5) | st.dictionaries(TEXTS, children, max_size=3),
)
NAMES = st.sampled_from([*PARAMETERS, *PredictFields.model_fields, "models"]) | TEXTS


def refused_with(fields: dict[str, Any]) -> InvalidRequest | None:
    try:
        parse_fields(PredictFields, fields)
    except InvalidRequest as error:
        return error
    return None


@given(st.sampled_from(list(TASKS)), st.dictionaries(NAMES, JSON_VALUES, max_size=4))
def test_any_fields_parse_or_fail(task: str, fields: dict[str, Any]) -> None:
    error = refused_with({"task": task, **fields})
    assert error is None or (error.message + str(error.param)).encode()
