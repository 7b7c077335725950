import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from export.checkpoints.jobs import PHOTOGRAPHS, ExportJob, ExportOptions, plan_job
from export.checks import asking
from export.checks.answers import (
    MIN_CASES,
    MIN_EQUAL_TOKENS,
    AnswerAgreement,
    AnswerCheck,
    AnswerRun,
    ModelAnswer,
    agreeing_defaults,
    agreement,
    ask,
    load_photographs,
    matched_ious,
    spread,
    text_distance,
)
from export.checks.encoding import encode
from export.checks.parity import MIN_MEAN_COSINE, compare
from export.errors import SourceError
from tasks.catalog import CatalogEntry
from tasks.results import BoxXyxy, Detection, DetectionsResult, TextResult
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.export_cli import ModelStore
from tests.support.fake_service import INPUT_SIZE_WH, served
from wire.artifacts.manifest import Device, Part, Precision, read_manifest, vision_encoder_file

INT8_ON_CPU = replace(
    FLORENCE, precision={**FLORENCE.precision, "cpu": {"encoder": "int8", "decoder": "int8"}}
)
MANIFEST = served(FLORENCE).manifest
SHIPPED = sorted(PHOTOGRAPHS.glob("*.jpg"))
PERFECT = AnswerAgreement(48, 1.0, 40, 1.0, 1.0, 24, 0.0)
DEFAULTS: dict[Device, dict[Part, Precision]] = {
    "cpu": {"encoder": "int8", "decoder": "int8"},
    "cuda": {"encoder": "float16", "decoder": "bfloat16"},
}
BOX = (0.0, 0.0, 10.0, 10.0)


def run(encoder: Precision, decoder: Precision, **measured: float) -> AnswerRun:
    return AnswerRun(encoder, decoder, "photographs", 24, replace(PERFECT, **measured))  # type: ignore[arg-type]


def boxes(*labelled: tuple[str, BoxXyxy]) -> DetectionsResult:
    return DetectionsResult(tuple(Detection(box, label, 1.0) for label, box in labelled), True)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("", "", 0.0), ("cat", "cat", 0.0), ("", "cat", 1.0), ("kitten", "sitting", 3 / 7)],
)
def test_text_distance_is_levenshteins(first: str, second: str, expected: float) -> None:
    assert text_distance(first, second) == pytest.approx(expected)
    assert text_distance(second, first) == pytest.approx(expected)


def test_each_box_is_matched_once_with_the_best_of_its_label() -> None:
    expected = boxes(("cat", BOX), ("cat", (20, 20, 30, 30)), ("dog", BOX)).detections
    answer = boxes(("cat", (0, 0, 10, 8)), ("cat", BOX), ("bird", BOX)).detections
    assert matched_ious(answer, expected) == [1.0]
    assert matched_ious((), expected) == []


def test_agreement_sums_over_all_prompts() -> None:
    expected = [
        ModelAnswer((1, 2), TextResult("cat", True)),
        ModelAnswer((3, 4, 5, 6), boxes(("cat", BOX), ("dog", BOX))),
    ]
    answers = [
        ModelAnswer((1, 2), TextResult("cut", True)),
        ModelAnswer((9, 3, 4, 5), boxes(("cat", (0, 0, 10, 8)))),  # shifted by an insertion
    ]
    measured = agreement(answers, expected)
    assert (measured.num_prompts, measured.num_boxes, measured.num_texts) == (2, 2, 1)
    assert measured.equal_tokens == (1 + 0.75) / 2
    assert measured.matched_boxes == pytest.approx(2 / 3)
    assert measured.box_iou == pytest.approx(0.8)
    assert measured.text_distance == pytest.approx(1 / 3)
    assert agreement(answers[1:], [ModelAnswer((1,), boxes())]).matched_boxes == 0
    nothing = [ModelAnswer((), boxes())] * 2
    perfect = replace(PERFECT, num_prompts=2, num_boxes=0, num_texts=0)
    assert agreement(nothing, nothing) == perfect


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        ({"equal_tokens": 0.89}, "equal tokens 0.890, at least 0.90 required"),
        ({"matched_boxes": 0.89}, "matched boxes 0.890, at least 0.90 required"),
        ({"box_iou": 0.89}, "IoU of boxes 0.890, at least 0.90 required"),
        ({"text_distance": 0.11}, "equal text 0.890, at least 0.90 required"),
        ({"equal_tokens": float("nan")}, "equal tokens nan, at least 0.90 required"),
    ],
)
def test_a_default_below_a_threshold_becomes_float32(
    measured: dict[str, float], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [run("int8", "float32", **measured), run("float32", "int8"), run("int8", "int8")]
    assert agreeing_defaults("some-model", DEFAULTS, runs) == DEFAULTS | {
        "cpu": {"encoder": "float32", "decoder": "int8"}
    }
    assert caplog.messages == [
        "some-model on cpu: the int8 encoder does not answer as float32 does: "
        f"{text}, on 24 photographs; the default of the encoder is float32 instead"
    ]


def test_the_weaker_part_of_a_failing_pair_becomes_float32(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = [
        run("int8", "float32", equal_tokens=0.95),
        run("float32", "int8", equal_tokens=0.92),
        run("int8", "int8", equal_tokens=0.88),
    ]
    expected = {"encoder": "int8", "decoder": "float32"}
    assert agreeing_defaults("some-model", DEFAULTS, runs)["cpu"] == expected
    assert "the int8 encoder with the int8 decoder does not answer as float32 does" in caplog.text


def test_thresholds_and_too_few_cases_keep_a_default(caplog: pytest.LogCaptureFixture) -> None:
    runs = [run("int8", "float32", equal_tokens=MIN_EQUAL_TOKENS), run("float32", "int8")]
    assert agreeing_defaults("some-model", DEFAULTS, runs) == DEFAULTS
    assert agreeing_defaults("some-model", DEFAULTS, []) == DEFAULTS
    assert not caplog.messages
    assert not run("int8", "int8", matched_boxes=0.5, num_boxes=MIN_CASES - 1).shortfalls
    assert run("int8", "int8", matched_boxes=0.5, num_boxes=MIN_CASES).shortfalls


def test_shipped_photographs_are_small_and_licensed() -> None:
    assert len(SHIPPED) == 24
    assert sum(file.stat().st_size for file in SHIPPED) < 1_500_000
    table = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    for file in SHIPPED:
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{file.name}` |")]
        licences = ("CC BY", "CC0", "public domain", "no known copyright")
        assert any(licence in row for licence in licences), row


def test_a_photograph_is_resized_and_named_after_its_subject(tmp_path: Path) -> None:
    Image.new("L", (60, 40)).save(tmp_path / "red-car.png")
    (picture,) = load_photographs([tmp_path / "red-car.png"], MANIFEST)
    assert (picture.subject, picture.original_size_wh) == ("red car", (60, 40))
    assert (picture.image.mode, picture.image.size) == ("RGB", INPUT_SIZE_WH)
    (tmp_path / "car.jpg").write_text("not an image")
    with pytest.raises(SourceError, match=r"car\.jpg cannot be read as an image"):
        list(load_photographs([tmp_path / "car.jpg"], MANIFEST))


@pytest.mark.parametrize(
    ("max_files", "expected"),
    [(2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))],
)
def test_fewer_files_are_spread_over_all(max_files: int, expected: list[int]) -> None:
    files = [Path(str(index)) for index in range(10)]
    assert spread(files, max_files) == [files[index] for index in expected]


@pytest.mark.parametrize(
    ("entry", "boxes_task"),
    [(FLORENCE, "object_detection"), (PALIGEMMA, "open_vocabulary_detection")],
)
def test_tasks_take_turns_and_the_first_pictures_get_all(
    entry: CatalogEntry, boxes_task: str
) -> None:
    pictures = list(load_photographs(SHIPPED[:6], MANIFEST))
    by_picture: list[list[str | None]] = [[] for _ in pictures]
    for picture, question in ask(entry, pictures, num_each=2, num_fully_asked=2):
        by_picture[pictures.index(picture)].append(question.task_id)
        if question.task_id in ("open_vocabulary_detection", "instance_segmentation"):
            assert picture.subject in question.text
    tasks = ["captioning", boxes_task, "instance_segmentation", "ocr"]
    turned = [tasks, [*tasks[1:], tasks[0]], tasks[2:], [tasks[3], tasks[0]]]
    assert by_picture == [*turned, tasks[:2], tasks[1:3]]


def test_a_question_is_constrained_and_has_its_beams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "to_request", lambda _decoder, _features, spec: spec)
    (question,) = asking.Question.of_task(FLORENCE, "object_detection", {}, INPUT_SIZE_WH)
    decoder: Any = None
    spec: Any = question.request(decoder, torch.zeros(1, 1), 7, num_beams=1)
    assert question.grammar
    assert (spec.max_new_tokens, spec.num_beams, spec.grammar) == (7, 1, question.grammar)


@pytest.fixture
def folder(exported: ModelStore, tmp_path: Path) -> Path:
    """A copy of florence-2-mini's artifacts."""
    return Path(shutil.copytree(exported.newest(FLORENCE.id), tmp_path / "artifacts"))


def check_of(folder: Path, job: ExportJob | None = None) -> AnswerCheck:
    job = job or plan_job(INT8_ON_CPU, ExportOptions())
    return AnswerCheck.of(job, folder, read_manifest(folder))


def test_each_part_alone_and_the_default_pair_are_measured(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = check_of(folder).measure({"encoder": ("int8",), "decoder": ("int8",)})
    pairs = [(measured.encoder, measured.decoder) for measured in runs]
    assert pairs == [("int8", "float32"), ("float32", "int8"), ("int8", "int8")]
    for measured in runs:
        assert (measured.pictures, measured.num_pictures) == ("scenes", 12)
        assert measured.agreement.num_prompts == 28
    precision = INT8_ON_CPU.precision
    assert agreeing_defaults(FLORENCE.id, precision, runs) == precision
    assert not caplog.messages


def test_disturbed_int8_is_refused_though_its_cosine_is_high(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disturb(folder / vision_encoder_file("int8"), 0.2)
    check = check_of(folder)
    images = [picture.image for picture in check.pictures]
    measured = compare("int8", encode(folder, "int8", images), encode(folder, "float32", images))
    assert measured["mean_cosine"] > MIN_MEAN_COSINE
    runs = check.measure({"encoder": ("int8",), "decoder": ()})
    defaults = agreeing_defaults(FLORENCE.id, INT8_ON_CPU.precision, runs)
    assert defaults["cpu"] == {"encoder": "float32", "decoder": "int8"}
    (message,) = caplog.messages
    assert "the int8 encoder does not answer as float32 does: equal tokens" in message
    assert "required, on 12 scenes; the default of the encoder is float32 instead" in message


def disturb(file: Path, strength: float) -> None:
    """Add noise to the scales of the quantised weights."""
    model = onnx.load(file)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_scale"):
            scale = numpy_helper.to_array(tensor)
            noisy = (scale * (1 + strength * rng.standard_normal(scale.shape))).astype(scale.dtype)
            tensor.CopyFrom(numpy_helper.from_array(noisy, tensor.name))
    onnx.save(model, file)


def test_an_encoder_that_returns_nan_agrees_with_nothing(folder: Path) -> None:
    file = folder / vision_encoder_file("float16")
    model = onnx.load(file)
    tensors = model.graph.initializer
    half = next(tensor for tensor in tensors if tensor.data_type == onnx.TensorProto.FLOAT16)
    nothing = np.full_like(numpy_helper.to_array(half), np.nan)
    half.CopyFrom(numpy_helper.from_array(nothing, half.name))
    onnx.save(model, file)
    (measured,) = check_of(folder).measure({"encoder": ("float16",), "decoder": ()})
    assert measured.num_pictures == 2
    assert (measured.agreement.equal_tokens, measured.agreement.matched_boxes) == (0, 0)


@pytest.mark.parametrize(
    ("parameters", "num_photographs", "num_prompts"),
    [(231_443_968, 24, 24 + 6), (400_000_000, 16, 16 + 6), (3_000_000_000, 8, 8)],
)
def test_a_larger_model_answers_fewer_prompts_and_all_about_own_images(
    folder: Path, tmp_path: Path, parameters: int, num_photographs: int, num_prompts: int
) -> None:
    Image.new("RGB", (64, 48), "red").save(tmp_path / "red-wall.PNG")
    (tmp_path / "notes.txt").write_text("no image")
    options = ExportOptions(images=tmp_path)
    job = plan_job(replace(FLORENCE, parameters=parameters), options)
    assert job.build_key != plan_job(FLORENCE, ExportOptions()).build_key
    manifest = replace(read_manifest(folder), num_image_tokens=256)
    released = replace(job.entry, source="owner/name")
    check = AnswerCheck.of(replace(job, entry=released), folder, manifest)
    subjects = [picture.subject for picture in check.pictures]
    assert (len(subjects), subjects[-1]) == (num_photographs + 1, "red wall")
    assert (check.kind, len(check.questions)) == ("photographs", num_prompts + 1)
