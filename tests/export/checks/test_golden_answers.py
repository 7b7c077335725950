import json
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.bases import CATALOG_FILE
from export.checks.golden_answers import (
    GoldenAnswer,
    answers_of,
    find_image,
    golden_offer,
    has_regions,
    read_golden,
)
from export.errors import SourceError
from export.golden import Question
from tasks.catalog import load_catalog
from tasks.families import FAMILIES
from tasks.parsing import GeneratedText

GOLDEN = read_golden()
CATALOG = load_catalog(CATALOG_FILE, GOLDEN.answers)
ALL: list[tuple[str, GoldenAnswer]] = []
for _model_id, _answers in GOLDEN.answers.items():
    ALL += [(_model_id, answer) for answer in _answers]
LOCATED = [(model_id, answer) for model_id, answer in ALL if answer.regions]


def test_published_answers_are_of_models_of_the_catalog() -> None:
    assert all(model_id in CATALOG for model_id in GOLDEN.answers)
    num_sure = sum(not answer.weak for _, answer in ALL)
    assert (len(ALL), num_sure, len(LOCATED)) == (37, 17, 16)
    assert all("@" in answer.source for _, answer in ALL)


@pytest.mark.parametrize(("model_id", "answer"), LOCATED)
def test_published_text_parses_to_the_published_regions(
    model_id: str, answer: GoldenAnswer
) -> None:
    size_wh = GOLDEN.images[answer.image].size_wh
    assert size_wh is not None
    entry = CATALOG[model_id]
    question = Question.of(entry, answer.prompt, size_wh)
    assert question.task_id is not None
    text = answer.text.replace("<s>", "")  # the runner drops such tokens
    written = GeneratedText(text, (len(text),), (0.0,), "stop")
    result = FAMILIES[entry.family].parse_answer(
        entry, question.task_id, question.parameters, [written], size_wh, "polygon", None
    )
    assert answer.regions is not None
    assert has_regions(result, answer.regions), result
    assert not has_regions(result, answer.regions[1:])


@pytest.mark.parametrize(
    ("model_id", "answer"), [pair for pair in ALL if CATALOG[pair[0]].family == "paligemma"]
)
def test_paligemmas_published_prompts_are_sent_as_they_are(
    model_id: str, answer: GoldenAnswer
) -> None:
    question = Question.of(CATALOG[model_id], answer.prompt, (640, 480))
    assert "".join(segment.text for segment in question.prompt) == answer.prompt


def test_a_model_with_published_answers_is_offered_the_comparison() -> None:
    assert golden_offer("florence-2-base") == (
        "6 published answers to compare with: python -m export golden florence-2-base"
    )
    assert golden_offer("florence-2-mini") is None
    assert golden_offer("florence-2-base", Path("not in an image.yaml")) is None


ANSWER = {"image": "a.jpg", "prompt": "", "max_new_tokens": 1, "source": "a file", "text": ""}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a: [", "cannot be read as YAML: while parsing"),
        ({"images": {}, "answers": {}, "rules": 1}, "at rules: Extra inputs are not permitted"),
        ({"images": {"../a.jpg": {}}, "answers": {}}, "at images.../a.jpg.[key]: String should"),
        (
            {"images": {"a.jpg": {"url": "http://127.0.0.1/a.jpg"}}, "answers": {}},
            "at images.a.jpg.url: String should match pattern",
        ),
        (
            {"images": {"a.jpg": {}}, "answers": {"x": [ANSWER | {"max_new_tokens": 0}]}},
            "at answers.x.0.max_new_tokens: Input should be greater than or equal to 1",
        ),
        (
            {"images": {}, "answers": {"x": [ANSWER]}},
            "has an answer about a.jpg, which is not among its images",
        ),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(
    document: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.yaml"
    text = document if isinstance(document, str) else json.dumps(document)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SourceError) as refused:
        read_golden(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_image_without_a_url_needs_a_folder() -> None:
    golden = read_golden()
    (answer, *_) = answers_of(golden, "florence-2-base")
    local = golden.images[answer.image].model_copy(update={"url": None})
    with pytest.raises(SourceError, match=r"australia\.jpg has no URL: give the folder"):
        find_image(answer.image, local, None)
