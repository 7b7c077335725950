from pathlib import Path

import pytest
from PIL import Image

from export.checkpoints.jobs import PHOTOGRAPHS
from export.checks.answers import Picture, ask, load_photographs, make_scenes, spread
from export.errors import SourceError
from tests.support.catalog import FLORENCE, PALIGEMMA
from tests.support.fake_service import INPUT_SIZE_WH, served_models

MANIFEST = served_models().get(FLORENCE.id).manifest
SHIPPED = sorted(PHOTOGRAPHS.glob("*.jpg"))


def photographs() -> list[Picture]:
    return list(load_photographs(SHIPPED, MANIFEST))


def test_24_small_photographs_ship_each_with_its_source_and_licence() -> None:
    assert len(SHIPPED) == 24
    assert sum(file.stat().st_size for file in SHIPPED) < 1_500_000
    table = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    for file in SHIPPED:
        assert file.stat().st_size <= 60_000
        with Image.open(file) as image:
            assert max(image.size) <= 768
        (row,) = [line for line in table.splitlines() if line.startswith(f"| `{file.name}` |")]
        assert any(
            licence in row for licence in ("CC BY", "CC0", "public domain", "no known copyright")
        ), row


def test_a_picture_has_the_models_size_and_is_named_after_its_subject(tmp_path: Path) -> None:
    Image.new("L", (60, 40)).save(tmp_path / "red-car.png")
    (picture,) = load_photographs([tmp_path / "red-car.png"], MANIFEST)
    assert (picture.subject, picture.image.mode, picture.original_size_wh) == (
        "red car",
        "RGB",
        (60, 40),
    )
    assert picture.image.size == INPUT_SIZE_WH


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "car.jpg").write_text("not an image")
    with pytest.raises(SourceError, match=r"car\.jpg cannot be read as an image"):
        list(load_photographs([tmp_path / "car.jpg"], MANIFEST))


@pytest.mark.parametrize(
    ("max_files", "expected"),
    [(2, [0, 5]), (3, [0, 3, 6]), (10, list(range(10))), (99, list(range(10)))],
)
def test_fewer_files_are_spread_over_all(max_files: int, expected: list[int]) -> None:
    files = [Path(str(index)) for index in range(10)]
    assert spread(files, max_files) == tuple(files[index] for index in expected)


@pytest.mark.parametrize("entry", [FLORENCE, PALIGEMMA], ids=lambda entry: entry.id)
def test_every_picture_is_asked_and_every_kind_of_answer_occurs(entry: object) -> None:
    entry = FLORENCE if entry is FLORENCE else PALIGEMMA
    pictures = [*photographs(), *make_scenes(4, MANIFEST)]
    questions = ask(entry, pictures, {"photographs": 1, "scenes": 2}, num_fully_asked=2)
    asked = [question.picture for question in questions]
    counts = [asked.count(index) for index in range(len(pictures))]
    assert counts == [4, 4, *[1] * 22, 4, 4, 2, 2]
    boxes = "object_detection" if entry is FLORENCE else "open_vocabulary_detection"
    tasks = [question.task_id for question in questions if 2 <= question.picture < 24]
    assert {task: tasks.count(task) for task in tasks}.keys() == {
        "captioning",
        boxes,
        "instance_segmentation",
        "ocr",
    }
    assert min(map(tasks.count, tasks)) >= 5


def test_detection_and_segmentation_are_asked_for_the_subject() -> None:
    questions = ask(PALIGEMMA, photographs(), {"photographs": 4, "scenes": 0}, num_fully_asked=0)
    cat = [question for question in questions if SHIPPED[question.picture].stem == "cat"]
    prompts = {}
    for question in cat:
        prompts[question.task_id] = "".join(segment.text for segment in question.prompt)
    assert prompts["open_vocabulary_detection"] == "detect cat"
    assert prompts["instance_segmentation"] == "segment cat"
