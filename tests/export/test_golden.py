"""Published answers, and `python -m export golden` over the embedded models and images of scenes
whose truth is known.
"""

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest

from export.checkpoints.bases import CATALOG_FILE
from export.checks.asking import Question
from export.errors import SourceError
from export.golden import (
    GoldenAnswer,
    GoldenFile,
    GoldenImage,
    open_image,
    read_golden,
)
from export.scenes import render_scene, sample_scene
from tasks.catalog import load_catalog
from tasks.families import FAMILIES
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.results import DetectionsResult, InstancesResult, Result, TextRegionsResult
from tests.support.export_cli import ModelStore
from tests.support.hub import REPOSITORY, running_hub
from wire.artifacts.manifest import read_manifest, write_manifest

GOLDEN = read_golden()
CATALOG = load_catalog(CATALOG_FILE, GOLDEN.answers)
ALL: list[tuple[str, GoldenAnswer]] = []
for _model_id, _answers in GOLDEN.answers.items():
    ALL += [(_model_id, answer) for answer in _answers]
LOCATED = [(model_id, answer) for model_id, answer in ALL if answer.regions]

FLORENCE = "florence-2-mini"
SCENE = "scene-6.png"
SIZE_PX = 384
CAPTION = "a purple star and a yellow square with text"
BOXES = "star<loc_424><loc_640><loc_568><loc_776>square<loc_752><loc_128><loc_872><loc_256>"
BOX = "<loc0136><loc0768><loc0264><loc0896> yellow square"
Texts = Mapping[str, str]  # by prompt
TRUE: dict[str, Texts] = {
    "florence-2-mini": {"<CAPTION>": CAPTION, "<OD>": BOXES, "<OCR>": "088"},
    "paligemma-mini": {
        "caption en": CAPTION,
        "detect yellow square": BOX,
        "answer en what does the text say?": "088",
        "": "",
    },
}
PUBLISHED = f"https://huggingface.co/datasets/{REPOSITORY}/resolve/main/{SCENE}"


def test_published_answers_are_of_models_of_the_catalog() -> None:
    assert all(model_id in CATALOG for model_id in GOLDEN.answers)
    num_sure = sum(not answer.weak for _, answer in ALL)
    assert (len(ALL), num_sure, len(LOCATED)) == (37, 17, 16)
    for model_id, answer in ALL:
        assert "@" in answer.source
        assert answer.image in GOLDEN.images
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
    regions = []
    assert answer.regions is not None
    for published, (label, at) in zip(answer.regions, regions_of(result), strict=True):
        regions.append({"label": published["label"] and label, "at": list(map(int, at))})
    assert regions == answer.regions


def regions_of(result: Result) -> Iterator[tuple[str, Iterable[float]]]:
    match result:
        case DetectionsResult():
            for detection in result.detections:
                yield detection.label, detection.box
        case InstancesResult():
            for instance in result.instances:
                for ring in instance.polygons or ():
                    yield instance.label, chain.from_iterable(ring)
        case TextRegionsResult():
            for region in result.text_regions:
                yield region.text, chain.from_iterable(region.quad)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("a: [", "ParserError"),
        ("{images: {}, answers: {}, rules: 1}", "rules Extra inputs are not permitted"),
        ("{images: {../a.jpg: {}}, answers: {}}", "String should match pattern"),
    ],
)
def test_a_malformed_file_is_refused_with_the_place(
    document: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "answers.yaml"
    file.write_text(document, encoding="utf-8")
    with pytest.raises(SourceError) as refused:
        read_golden(file)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def write_answers(folder: Path, texts: Texts, model_id: str = FLORENCE, **image: object) -> Path:
    """Write answers about the scene, those to `<OCR>` as weak ones; JSON is YAML."""
    common = {"image": SCENE, "max_new_tokens": 60, "source": "the scene"}
    rows = []
    for prompt, text in texts.items():
        rows.append(common | {"prompt": prompt, "text": text, "weak": prompt == "<OCR>"})
    images = {SCENE: {"size_wh": [SIZE_PX, SIZE_PX]} | image}
    file = folder / "answers.yaml"
    file.write_text(json.dumps({"images": images, "answers": {model_id: rows}}), encoding="utf-8")
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
    file = write_answers(tmp_path, TRUE[model_id], model_id)
    run = golden(exported, model_id, "--answers", file, "--images", images)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    for line, prompt in zip(run.stdout.splitlines(), TRUE[model_id], strict=True):
        assert line.startswith(f"ok        float32+float32 {SCENE} {prompt!r}: expected and got ")


def test_the_default_precision_and_float32_are_compared(
    exported: ModelStore, images: Path, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "bentoml")
    store.add_newest(FLORENCE, exported)
    folder = store.newest(FLORENCE)
    manifest = read_manifest(folder)
    manifest.precision["cpu"].update({"encoder": "int8", "decoder": "int8"})  # type: ignore[attr-defined]
    write_manifest(folder, manifest)
    file = write_answers(tmp_path, {"<CAPTION>": CAPTION})
    run = golden(store, FLORENCE, "--answers", file, "--images", images)
    starts = [line.split()[:2] for line in run.stdout.splitlines()]
    assert starts == [["ok", "int8+int8"], ["ok", "float32+float32"]]


def test_a_difference_fails_unless_it_is_weak(
    exported: ModelStore, images: Path, tmp_path: Path
) -> None:
    green = CAPTION.replace("yellow", "green")
    file = write_answers(tmp_path, {"<CAPTION>": green, "<OCR>": "0888", "<NOTHING>": "?"})
    run = golden(exported, FLORENCE, "--answers", file, "--images", images)
    caption, text, unknown = run.stdout.splitlines()
    assert run.returncode == 1
    where = f"float32+float32 {SCENE} "
    assert caption == (
        f"failure   {where}'<CAPTION>': from character 21 expected '…green square with text', got"
        " '…yellow square with text'"
    )
    assert text == f"warning   {where}'<OCR>': from character 4 expected '…8', got '…'"
    assert unknown.startswith(f"failure   {where}'<NOTHING>': no answer: <NOTHING> is not a task")


def test_images_are_fetched_once(exported: ModelStore, images: Path, tmp_path: Path) -> None:
    file = write_answers(tmp_path, {"<CAPTION>": CAPTION}, url=PUBLISHED)
    with running_hub(images) as hub:
        environment = hub.environment(tmp_path / "cache")
        run = golden(exported, FLORENCE, "--answers", file, **environment)
    assert run.returncode == 0, run.stderr
    again = golden(exported, FLORENCE, "--answers", file, **environment)
    assert (again.returncode, again.stdout) == (0, run.stdout)


def test_an_image_that_is_not_the_published_one_is_refused(images: Path) -> None:
    published = GoldenImage(url=PUBLISHED, size_wh=(SIZE_PX, SIZE_PX))
    file = GoldenFile(images={SCENE: published}, answers={})
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
