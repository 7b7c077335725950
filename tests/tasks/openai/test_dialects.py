import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from tasks.catalog import CatalogEntry, CatalogError, Dialect, parse_entry
from tasks.families import FAMILIES
from tasks.openai.parsing import written_objects
from tasks.openai.prompts import BOX_FORMS, answer_schema, qwen_size
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.results import DetectionsResult, Result, TextResult
from tasks.table import TASKS, TaskParameters, parse_parameters
from tests.support.answers import generated

SIZE_WH = (2000, 500)
FIND = "open_vocabulary_detection"
LANGUAGE = FAMILIES["openai"]
ROW = {"id": "far", "family": "openai", "url": "http://a:1/v1", "model": "org/m"}


def entry_of(dialect: Dialect = "qwen3-vl", **fields: Any) -> CatalogEntry:
    return parse_entry({**ROW, "dialect": dialect, **fields})


def prompt(task_id: str, dialect: Dialect = "qwen3-vl", **values: Any) -> str:
    parameters = parse_parameters(TASKS[task_id], values)
    ((segment,),) = LANGUAGE.task_prompts(entry_of(dialect), task_id, parameters, SIZE_WH)
    assert not segment.is_control
    return segment.text


def parse(
    text: str | GeneratedText,
    dialect: Dialect = "qwen3-vl",
    task_id: str = FIND,
    labels: tuple[str, ...] = ("cat", "Red Car"),
) -> Result:
    answer = GeneratedText(text, (), (), "stop") if isinstance(text, str) else text
    parameters = TaskParameters(labels=labels)
    task = AnsweredTask(entry_of(dialect), task_id, parameters, SIZE_WH)
    return LANGUAGE.parse_answer(task, [answer])


def boxes(result: Result) -> list[tuple[str, list[float]]]:
    assert isinstance(result, DetectionsResult)
    rows = []
    for item in result.detections:
        rows.append((item.label, [round(side, 3) for side in item.box]))
    return rows


def test_prompts() -> None:
    named = prompt(FIND, labels=["cat", "{dog}", "bird"])
    assert 'following categories: "cat, {dog}, bird". Report bbox' in named
    named = prompt(FIND, "gemma", labels=["cat", "dog", "bird"])
    assert named == "detect cat, dog and bird, output only ```json"
    assert prompt(FIND, "gemma", labels=["cat"]).startswith("detect cat, output")
    assert 'categories: "every object"' in prompt("object_detection")
    assert "sentence: two cats" in prompt("phrase_grounding", caption="two cats")
    assert prompt("captioning", detail="detailed", language="de").endswith("with the code de.")
    assert prompt("visual_question_answering", question="why?") == "why?"
    fields = json.loads(prompt(FIND, "diptych", labels=["Käse"]))
    assert fields == {"task": FIND, "labels": ["Käse"]}


def test_schema_is_that_of_the_prompt() -> None:
    parameters = TaskParameters(labels=("cat",))
    schemas = {}
    for dialect in ("qwen3-vl", "gemma", "diptych", "qwen2.5-vl"):
        entry = parse_entry({**ROW, "dialect": dialect})
        schemas[dialect] = json.dumps(answer_schema(entry, FIND, parameters))
        assert answer_schema(entry, "ocr", parameters) is None
    qwen = schemas["qwen3-vl"]
    assert schemas["gemma"] == qwen.replace("bbox_2d", "box_2d")
    assert json.loads(qwen)["items"]["properties"]["label"]["enum"] == ["cat"]
    assert schemas["diptych"] == "null"
    assert schemas["qwen2.5-vl"] == qwen.replace(', "maximum": 1000', "")


@pytest.mark.parametrize(
    ("dialect", "text", "expected"),
    [
        # 2000 x 500 is resized to 1988 x 504
        ("qwen2.5-vl", '{"bbox_2d": [0, 0, 1988, 252]}', [[0, 0, 2000, 250]]),
        ("qwen2.5-vl", '{"bbox_2d": [0, 0, 1988, 505]}', None),
        ("qwen2.5-vl", '{"bbox_2d": [0.1, 0.2, 0.5, 0.5]}', None),
        ("qwen3-vl", '{"bbox_2d": [0.1, 0.2, 0.5, 0.5]}', None),
        ("qwen3-vl", '{"bbox_2d": [0.0, 0.0, 1.0, 1.0]}', None),
        ("qwen3-vl", '{"bbox_2d": [1, 1, 9, 9]}, {"bbox_2d": [1, 1, 1500, 9]}', None),
        ("qwen3-vl", '{"bbox_2d": [-1, 1, 9, 9]}', None),
        ("gemma", '{"box_2d": [1, 1, 9, 1001]}', None),
        ("diptych", '{"detections": [{"box": [1, 2, 3, 501], "label": "", "score": 1}]}', None),
    ],
)
def test_other_coordinates_than_the_dialect_are_not_parsed(
    dialect: Dialect, text: str, expected: list[list[float]] | None
) -> None:
    result = parse(text, dialect)
    assert isinstance(result, DetectionsResult)
    assert result.is_parsed == (expected is not None)
    assert [box for _, box in boxes(result)] == (expected or [])


@pytest.mark.parametrize("size_wh", [(640, 480), (1, 1), (30, 900), (8000, 6000), (9000, 60)])
def test_size_of_qwen_is_the_processors(size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    expected_hw = smart_resize(height, width, 28, 56 * 56, 16384 * 28 * 28)
    assert qwen_size(size_wh) == expected_hw[::-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[{"bbox_2d": [0, 100, 500, 1000], "label": "cat"}]', [("cat", [0, 50, 1000, 500])]),
        ('```json\n{"bbox_2d":[0,0,1,2]}\n``` done', [("", [0, 0, 2, 1])]),
        ('{"label": "A CAT", "bbox_2d": [5, 6, 3, 4]}', [("cat", [6, 2, 10, 3])]),
        (
            '{"bbox_2d": [[0,0,1,1], [2,2,3,3], [4]], "label": "x"}',
            [("x", [0, 0, 2, 0.5]), ("x", [4, 1, 6, 1.5])],
        ),
        ('{"bbox_2d": [0.5, 1, 1000, 2], "label": "dog"}', [("dog", [1, 0.5, 2000, 1])]),
        ('{"bbox_2d": [1, 1, 1, 9], "label": "no area"}', []),
        ('{"bbox_2d": [1, 2, 3], "label": "three"}', []),
        ('{"box_2d": [1, 2, 3, 4], "label": "another dialect"}', []),
        ('{"bbox_2d": [x1, y1, x2, y2], "label": "the form itself"}', []),
        (
            '{"bbox_2d": [0, 0, 1, 1], "names": {"zh": "\\u732b", "en": "cat"}}',
            [("猫", [0, 0, 2, 0.5])],
        ),
        ('{ {"bbox_2d": [0, 0, 1, 1], "label": "a } b"}', [("a } b", [0, 0, 2, 0.5])]),
        ('{"a": [{"b": 1}], "bbox_2d": [0, 0, 1, 1]}', [("", [0, 0, 2, 0.5])]),
        ('{"bbox_2d": [0, 0, 1, 1], "label": "a\\ud83d"}', [("a?", [0, 0, 2, 0.5])]),
        ('{"bbox_2d": [0, 0, 1, 1], "label": "cut', []),
        ("I see no cats.", []),
        ('<think>{"bbox_2d": [0, 0, 1, 1]}</think>', []),
        ("[{'bbox_2d': [0, 0, 1, 1], 'label': 'Red car'}]", [("Red Car", [0, 0, 2, 0.5])]),
        (
            """Here's: {'bbox_2d': [0, 0, 1, 1], 'label': "dog's"} isn't it? [ {'label': """
            r"""'a "b" \'c', 'bbox_2d': [2, 2, 3, 3]}]""",
            [("dog's", [0, 0, 2, 0.5]), ('a "b" \'c', [4, 1, 6, 1.5])],
        ),
        ("{'bbox_2d': [0, 0, 1, 1], 'label': 'cut", []),
        ('A 5" cat: {"bbox_2d": [0, 0, 1, 1], "label": "cat"}', [("cat", [0, 0, 2, 0.5])]),
    ],
)
def test_boxes(text: str, expected: list[tuple[str, list[float]]]) -> None:
    assert boxes(parse(text)) == expected


RECORDED = json.loads((Path(__file__).parent / "recorded.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("answer", RECORDED, ids=itemgetter("source"))
def test_recorded_answers(answer: dict[str, Any]) -> None:
    """Texts that Qwen3-VL (three of Qwen2.5-VL), Gemma 4 and Gemini wrote, from their sources."""
    boxes = []
    for item in written_objects(answer["text"], BOX_FORMS[answer["dialect"]].key):
        coordinates = [number for number, _ in item.coordinates]
        for start in range(0, len(coordinates) - 3, 4):
            boxes.append([coordinates[start : start + 4], item.label])
    assert boxes == [[box, " ".join(label.split())] for box, label in answer["boxes"]]


def test_order_and_frame_of_gemma() -> None:
    text = '[{"box_2d": [100, 0, 1000, 500], "label": "cat"}]'
    assert boxes(parse(text, "gemma")) == [("cat", [0, 50, 1000, 500])]


@pytest.mark.parametrize(
    ("text", "is_parsed"),
    [("[]", True), ("```json\n[ ]\n```", True), ("", False), ("none", False), ("{}", False)],
)
def test_nothing_is_told_from_prose(text: str, is_parsed: bool) -> None:
    assert parse(text) == DetectionsResult((), is_parsed)


def test_scores_are_of_label_and_coordinates() -> None:
    logprobs = {'"cat"}': -1.0, "[1,": -0.2, "2]": -0.4}
    answer = generated('{"bbox_2d": [1, 2, 3, 9], "label": "cat"}', lambda t: logprobs.get(t, -0.3))
    result = parse(answer)
    assert isinstance(result, DetectionsResult)
    (detection,) = result.detections
    assert detection.score == pytest.approx(
        2.718281828 ** -(1.0 + (0.2 + 0.3 + 0.3 + 0.3) / 4), 0.1
    )


def test_typed_results_of_a_diptych() -> None:
    text = '{"detections": [{"box": [1, 2, 3, 4], "label": "cat", "score": null}]}'
    assert boxes(parse(text, "diptych")) == [("cat", [1, 2, 3, 4])]
    for change in ('"score": 1.5', '"score": NaN', '"box": [1, 2, NaN, 4]', '"box": [3, 2, 1, 4]'):
        assert boxes(parse(text.replace('"score": null', change), "diptych")) == []
    assert parse("oops", "diptych") == DetectionsResult((), is_parsed=False)
    assert parse('{"text": "hi"}', "diptych", "ocr") == TextResult("hi", is_parsed=True)
    assert parse("oops", "diptych", "ocr") == TextResult("", is_parsed=False)


def test_number_of_boxes_is_limited() -> None:
    text = '{"bbox_2d": [' + "0,0,1,1," * 1001 + "0]}"
    assert len(boxes(parse(text))) == 1000


def test_thoughts_are_not_the_text() -> None:
    text = "<think>The sign</think>\n\nSTOP"
    assert parse(text, task_id="ocr") == TextResult("STOP", is_parsed=True)


FRAGMENTS = st.sampled_from(
    ('{"bbox_2d":', "[", "]", "}", ",", " 12", "-3.5", "1e2", '"label": "cat"')
)


@given(st.lists(FRAGMENTS, max_size=12).map("".join))
@example('{"bbox_2d": [1, -2.5, 3, 9], "label": "cat"}')
def test_coordinates_are_those_of_the_text(text: str) -> None:
    for item in written_objects(text, "bbox_2d"):
        assert item.coordinates
        for number, (start, end) in item.coordinates:
            assert float(text[start:end]) == number


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dialect": "french"}, "dialect"),
        ({"url": "ftp://a"}, "url"),
        ({"url": "http://user@a/v1"}, "url"),
        ({"api_key_env": "a b"}, "api_key_env"),
        ({"model": ""}, "engine.model"),
        ({"tasks": {"none": None}}, "none"),
        ({"tasks": {"captioning": {"template": "describe"}}}, "has no templates"),
        ({"family": "florence2"}, "source: Field required"),
    ],
)
def test_bad_entry_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        parse_entry({**ROW, "dialect": "gemma", **change})
