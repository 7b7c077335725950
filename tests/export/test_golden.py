"""Published answers, and `python -m export golden` over the embedded models and images of scenes
whose truth is known.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from export.checkpoints.bases import CATALOG_FILE
from export.checks.asking import Question
from export.errors import SourceError
from export.golden import (
    GoldenAnswer,
    GoldenFile,
    GoldenImage,
    has_regions,
    open_image,
    read_golden,
)
from export.scenes import render_scene, sample_scene
from tasks.catalog import load_catalog
from tasks.families import FAMILIES
from tasks.parsing import AnsweredTask, GeneratedText
from tests.support.export_cli import ModelStore
from tests.support.hub import REPOSITORY, running_hub
from wire.artifacts.manifest import read_manifest, write_manifest

GOLDEN = read_golden()
CATALOG = load_catalog(CATALOG_FILE, GOLDEN.answers)
ALL: list[tuple[str, GoldenAnswer]] = []
for _model_id, _answers in GOLDEN.answers.items():
    ALL += [(_model_id, answer) for answer in _answers]
LOCATED = [(model_id, answer) for model_id, answer in ALL if answer.regions]

SCENE = "scene-6.png"
SIZE_PX = 384
CAPTION = "a purple star and a yellow square with text"
BOXES = "star<loc_424><loc_640><loc_568><loc_776>square<loc_752><loc_128><loc_872><loc_256>"
# bin + .5 of 1,000, in pixels of the scene
REGIONS: list[dict[str, Any]] = [
    {"label": "star", "at": [163, 245, 218, 298]},
    {"label": "square", "at": [288, 49, 335, 98]},
]
BOX = "<loc0136><loc0768><loc0264><loc0896> yellow square"
FLORENCE: list[dict[str, Any]] = [
    {"prompt": "<CAPTION>", "text": CAPTION},
    {"prompt": "<OD>", "text": BOXES, "regions": REGIONS},
    {"prompt": "<OCR>", "text": "088"},
]
TRUE: dict[str, list[dict[str, Any]]] = {
    "florence-2-mini": FLORENCE,
    "paligemma-mini": [
        {"prompt": "caption en", "text": CAPTION},
        {"prompt": "detect yellow square", "text": BOX},
        {"prompt": "answer en what does the text say?", "text": "088"},
        {"prompt": "", "text": ""},
    ],
}
PUBLISHED = f"https://huggingface.co/datasets/{REPOSITORY}/resolve/main/{SCENE}"
ANSWER = {"image": "a.jpg", "prompt": "", "max_new_tokens": 1, "source": "a file", "text": ""}


def test_published_answers_are_of_models_of_the_catalog() -> None:
    assert all(model_id in CATALOG for model_id in GOLDEN.answers)
    num_sure = sum(not answer.weak for _, answer in ALL)
    assert (len(ALL), num_sure, len(LOCATED)) == (37, 17, 16)
    for model_id, answer in ALL:
        assert "@" in answer.source
        if CATALOG[model_id].family == "paligemma":  # sent as it is
            question = Question.of_text(CATALOG[model_id], answer.prompt, (640, 480))
            assert question.text == answer.prompt


@pytest.mark.parametrize(("model_id", "answer"), LOCATED)
def test_published_text_parses_to_the_published_regions(
    model_id: str, answer: GoldenAnswer
) -> None:
    size_wh = GOLDEN.images[answer.image].size_wh
    assert size_wh is not None
    entry = CATALOG[model_id]
    question = Question.of_text(entry, answer.prompt, size_wh)
    assert question.task_id is not None
    text = answer.text.replace("<s>", "")  # the runner drops such tokens
    written = GeneratedText(text, (len(text),), (0.0,), "stop")
    task = AnsweredTask(entry, question.task_id, question.parameters, size_wh)
    result = FAMILIES[entry.family].parse_answer(task, [written])
    assert answer.regions is not None
    assert has_regions(result, answer.regions), result
    assert not has_regions(result, answer.regions[1:])
    first = answer.regions[0]
    moved = first.model_copy(update={"at": [first.at[0] + 1, *first.at[1:]]})
    assert not has_regions(result, [moved, *answer.regions[1:]])


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a: [", "ParserError"),
        ({"images": {}, "answers": {}, "rules": 1}, "rules Extra inputs are not permitted"),
        ({"images": {"../a.jpg": {}}, "answers": {}}, "String should match pattern"),
        ({"images": {}, "answers": {"x": [ANSWER]}}, "a.jpg is not among the images"),
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


def write_answers(
    folder: Path, answers: Mapping[str, list[dict[str, Any]]], **image: object
) -> Path:
    """Write a file of answers about the scene; JSON is YAML."""
    common = {"image": SCENE, "max_new_tokens": 60, "source": "the scene"}
    rows: dict[str, list[dict[str, Any]]] = {}
    for model_id, of_model in answers.items():
        rows[model_id] = [common | answer for answer in of_model]
    document = {"images": {SCENE: {"size_wh": [SIZE_PX, SIZE_PX]} | image}, "answers": rows}
    file = folder / "answers.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    render_scene(sample_scene(6), SIZE_PX).save(folder / SCENE)
    return folder


def golden(
    store: ModelStore, model_id: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    run = store.export("golden", model_id, *map(str, arguments), **environment)
    assert "Traceback" not in run.stderr
    return run


def test_true_answers_are_equal(
    exported: ModelStore, model_id: str, images: Path, tmp_path: Path
) -> None:
    file = write_answers(tmp_path, TRUE)
    run = golden(exported, model_id, "--answers", file, "--images", images)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    for line, answer in zip(run.stdout.splitlines(), TRUE[model_id], strict=True):
        assert line.startswith(f"ok        float32+float32 {SCENE} {answer['prompt']!r}: expected")


def test_the_default_precision_and_float32_are_compared(
    exported: ModelStore, images: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "bentoml")
    store.add_newest("florence-2-mini", exported)
    folder = store.newest("florence-2-mini")
    manifest = read_manifest(folder)
    manifest.precision["cpu"].update({"encoder": "int8", "decoder": "int8"})  # type: ignore[attr-defined]
    write_manifest(folder, manifest)
    file = write_answers(tmp_path, {"florence-2-mini": FLORENCE[:1]})
    run = golden(store, "florence-2-mini", "--answers", file, "--images", images)
    starts = [line.split()[:2] for line in run.stdout.splitlines()]
    assert starts == [["ok", "int8+int8"], ["ok", "float32+float32"]]


def test_a_difference_fails_unless_it_is_weak(
    exported: ModelStore, images: Path, tmp_path: Path
) -> None:
    moved = [REGIONS[0], REGIONS[1] | {"at": [288, 49, 335, 99]}]
    answers: list[dict[str, Any]] = [
        {"prompt": "<CAPTION>", "text": CAPTION.replace("yellow", "green")},
        {"prompt": "<OCR>", "text": "0888", "weak": True},
        {"prompt": "<OD>", "text": BOXES, "regions": moved},
        {"prompt": "<NOTHING>", "text": "?"},
    ]
    file = write_answers(tmp_path, {"florence-2-mini": answers})
    run = golden(exported, "florence-2-mini", "--answers", file, "--images", images)
    caption, text, boxes, unknown = run.stdout.splitlines()
    assert run.returncode == 1
    where = f"float32+float32 {SCENE} "
    assert caption == (
        f"failure   {where}'<CAPTION>': from character 21 expected '…green square with text', got"
        " '…yellow square with text'"
    )
    assert text == f"warning   {where}'<OCR>': from character 4 expected '…8', got '…'"
    assert boxes.startswith(f"failure   {where}'<OD>': the text is equal, the regions differ: got")
    assert unknown.startswith(f"failure   {where}'<NOTHING>': no answer: <NOTHING> is not a task")


def test_images_are_fetched_once(exported: ModelStore, images: Path, tmp_path: Path) -> None:
    file = write_answers(tmp_path, {"florence-2-mini": FLORENCE[:1]}, url=PUBLISHED)
    with running_hub(images) as hub:
        environment = hub.environment(tmp_path / "cache")
        run = golden(exported, "florence-2-mini", "--answers", file, **environment)
    assert run.returncode == 0, run.stderr
    again = golden(exported, "florence-2-mini", "--answers", file, **environment)
    assert (again.returncode, again.stdout) == (0, run.stdout)


def test_an_image_that_is_not_the_published_one_is_refused(images: Path) -> None:
    published = GoldenImage(url=PUBLISHED, size_wh=(SIZE_PX, SIZE_PX))
    file = GoldenFile(images={SCENE: published, "a.jpg": GoldenImage()}, answers={})
    assert open_image(file, SCENE, images).size == (SIZE_PX, SIZE_PX)
    other = GoldenFile(images={SCENE: GoldenImage(size_wh=(640, 480))}, answers={})
    with pytest.raises(SourceError, match=r"has \(384, 384\) pixels; the published, \(640, 480\)"):
        open_image(other, SCENE, images)
    (images / SCENE).unlink()
    with pytest.raises(SourceError, match=f"cannot read {SCENE} .{PUBLISHED}"):
        open_image(file, SCENE, images)
    with pytest.raises(SourceError, match=r"a\.jpg has no URL: give the folder"):
        open_image(file, "a.jpg", None)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("florence-2-mini", "has no answers of florence-2-mini: florence-2-base, "),
        ("florence-2-base", "no artifacts of florence-2-base in BentoML's model store"),
    ],
)
def test_a_model_without_answers_or_artifacts_is_refused(
    exported: ModelStore, model_id: str, message: str
) -> None:
    run = golden(exported, model_id)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.startswith("python -m export golden: ")
    assert message in run.stderr
