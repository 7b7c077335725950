"""The same labels in every format are the same values."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diptych_client.evaluation.formats.reading import read_dataset
from diptych_client.inputs import Folder, Problems
from diptych_client.long_runs import RunError
from tests.support.evaluations import (
    CLASSES,
    OBJECTS,
    write_arrow,
    write_coco,
    write_cvat,
    write_darknet,
    write_flat_voc,
    write_images,
    write_json_lines,
    write_label_studio,
    write_parquet,
    write_roboflow_yolo,
    write_voc,
    write_yolo,
    write_yolo_of_label_studio,
)

WRITERS = (
    write_coco,
    write_yolo,
    write_roboflow_yolo,
    write_yolo_of_label_studio,
    write_darknet,
    write_voc,
    write_flat_voc,
    write_cvat,
    write_label_studio,
    write_json_lines,
    write_parquet,
    write_arrow,
)


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_objects(write: Callable[[Path], Path], tmp_path: Path) -> None:
    dataset = read_dataset(write(tmp_path))
    assert dataset.classes == CLASSES
    for image, (name, own) in zip(dataset.images, OBJECTS.items(), strict=True):
        found = image.objects or ()
        assert [each.label for each in found] == [label for label, _ in own], name
        assert [each.box_xyxy for each in found] == [pytest.approx(box) for _, box in own], name


def test_the_split_that_is_read_is_noted_beside_the_others(tmp_path: Path) -> None:
    folder = write_yolo(tmp_path)
    assert read_dataset(folder).note == "the split val is read; --split reads train"
    assert read_dataset(folder, split="val").note == ""


def test_an_image_of_label_studio_may_have_the_name_before_its_upload(tmp_path: Path) -> None:
    folder = write_label_studio(tmp_path)
    for path in (folder / "images").iterdir():
        path.rename(path.with_name(path.name.removeprefix("0123abcd-")))
    assert [each.image.name for each in read_dataset(folder).images] == [
        f"images/{name}" for name in OBJECTS
    ]
    (folder / "images").rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"no image is left: .*: give its folder with --images"):
        read_dataset(folder)


@pytest.mark.parametrize("write", WRITERS)
def test_every_image_can_be_read_in_any_order(
    write: Callable[[Path], Path], tmp_path: Path
) -> None:
    dataset = read_dataset(write(tmp_path))
    for index in (2, 0, 1):
        with Image.open(io.BytesIO(dataset.store.read(dataset.images[index].image))) as image:
            assert image.convert("RGB").getpixel((0, 0)) == (index * 40, 90, 120)


def test_a_yolo_dataset_is_read_from_within_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_roboflow_yolo(tmp_path) / "valid")
    for path in (Path("../data.yaml"), Path()):  # the second is the folder of the split alone
        dataset = read_dataset(path)
        assert dataset.classes == CLASSES
        assert [len(image.objects or ()) for image in dataset.images] == [2, 1, 0]


def test_the_only_folder_in_a_folder_is_the_dataset(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    assert len(read_dataset(tmp_path).images) == len(OBJECTS)


def test_yolo_labels_without_names_of_classes_are_numbers(tmp_path: Path) -> None:
    (write_darknet(tmp_path) / "obj.names").unlink()
    problems = Problems()
    assert read_dataset(tmp_path, problems=problems).classes == ("0", "1")
    (line,) = problems.lines
    assert "none of classes.txt, obj.names" in line


def test_a_turned_box_is_its_outline(tmp_path: Path) -> None:
    write_cvat(tmp_path)
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace("<box", '<box rotation="90"', 1))
    (first, *_) = read_dataset(tmp_path).images[0].objects or ()
    assert first.box_xyxy == pytest.approx((15, 5, 35, 35))  # 30 x 20 around (25, 20)


def test_images_without_labels_say_which_were_looked_for(tmp_path: Path) -> None:
    write_images(tmp_path)
    assert read_dataset(tmp_path).note.startswith("no labels found: looked for data.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"contains neither labels nor .*; looked for data\.yaml"):
        read_dataset(tmp_path / "empty")


def test_one_split_of_several_is_read(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        (write_parquet(tmp_path / split) / "val-00000-of-00001.parquet").rename(
            tmp_path / split / "0000.parquet"
        )
    with pytest.raises(RunError, match=r"several splits: choose one with --split \(train, val\)"):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, split="train")
    assert len(dataset.images) == len(OBJECTS)
    assert dataset.images[0].image.name == "train/0000.parquet#0"


def test_the_metadata_of_an_image_folder_has_objects_and_captions(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_images(tmp_path / split)
        rows = [
            {
                "file_name": "a.png",
                "objects": {"bbox": [[10.0, 20.0, 30.0, 40.0]], "categories": ["car"]},
            },
            {"file_name": "b.png", "text": "two cats"},
        ]
        (tmp_path / split / "metadata.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    with pytest.raises(
        RunError, match=r"several label files \(test/metadata.jsonl, train/metadata.jsonl\)"
    ):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, split="train")
    first, second = dataset.images
    assert [(each.label, each.box_xyxy) for each in first.objects or ()] == [
        ("car", (10, 20, 40, 60))
    ]
    assert (second.captions, second.objects) == (("two cats",), None)
    assert dataset.store.read(second.image) == (tmp_path / "train" / "b.png").read_bytes()


def test_another_folder_of_images_is_for_coco_and_json_lines(tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    for write in (write_coco, write_json_lines):
        folder = write(tmp_path / write.__name__)
        assert read_dataset(folder, tmp_path / "pictures").store == Folder(tmp_path / "pictures")
    folder = write_yolo(tmp_path / "yolo")
    with pytest.raises(RunError, match="--images is for COCO, JSON lines, CVAT and Label Studio"):
        read_dataset(folder, tmp_path / "pictures")


def test_a_split_of_coco_is_that_of_its_file(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_coco(tmp_path / split)
        (tmp_path / split / "annotations.json").rename(tmp_path / split / "_annotations.coco.json")
    dataset = read_dataset(tmp_path, split="valid")
    assert dataset.classes == CLASSES
    assert dataset.store.read(dataset.images[0].image)
    with pytest.raises(RunError, match="has no label file of the split test"):
        read_dataset(tmp_path, split="test")
    with pytest.raises(RunError, match="is one file: omit --split"):
        read_dataset(tmp_path / "valid" / "_annotations.coco.json", split="valid")


def test_cached_results_of_the_datasets_library_are_not_read(tmp_path: Path) -> None:
    (saved,) = write_arrow(tmp_path).glob("*.arrow")
    (tmp_path / "cache-0123456789abcdef.arrow").write_bytes(saved.read_bytes())
    assert len(read_dataset(tmp_path).images) == len(OBJECTS)


def test_a_folder_of_images_has_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path)
    dataset = read_dataset(tmp_path)
    assert [image.image.name for image in dataset.images] == sorted(OBJECTS)
    assert all(image.objects is None for image in dataset.images)


def test_a_yolo_outline_is_a_polygon_with_its_box(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    (tmp_path / "labels" / "val" / "c.txt").write_text("1 0.1 0.25 0.5 0.25 0.5 0.75\n")
    (found,) = read_dataset(tmp_path).images[2].objects or ()
    assert found.box_xyxy == pytest.approx((10, 20, 50, 60))
    assert found.segmentation == [pytest.approx([10, 20, 50, 20, 50, 60])]


def test_yolo_boxes_are_of_the_upright_image(tmp_path: Path) -> None:
    write_yolo(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "images" / "val" / "b.png", exif=exif)
    (found,) = read_dataset(tmp_path).images[1].objects or ()
    assert found.box_xyxy == pytest.approx((0, 0, 0.2 * 80, 0.25 * 100))


def test_a_difficult_object_of_voc_does_not_count(tmp_path: Path) -> None:
    write_voc(tmp_path)
    file = tmp_path / "Annotations" / "b.xml"
    file.write_text(file.read_text().replace("</name>", "</name><difficult>1</difficult>"))
    (found,) = read_dataset(tmp_path).images[1].objects or ()
    assert found.is_crowd


def test_a_split_of_voc_is_that_of_its_file(tmp_path: Path) -> None:
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("b\na\n")
    assert [image.image.name for image in read_dataset(tmp_path, split="val").images] == [
        "b.png",
        "a.png",
    ]


def test_json_lines_have_captions_texts_questions_and_phrases(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "captions": ["one", "two"], "text": "EXIT", "region": [0, 0, 5, 5]},
        {"image": "a.png", "question": "how many?", "answers": [{"answer": "2"}, "two"]},
        {"image": "b.png", "phrases": [{"phrase": "left dog", "box": [0, 0, 20, 20]}]},
    ]
    write_images(tmp_path)
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second, third = read_dataset(tmp_path / "x.jsonl").images
    assert (first.captions, first.text, first.region) == (("one", "two"), "EXIT", (0, 0, 5, 5))
    assert second.questions[0].answers == ("2", "two")
    assert (third.phrases[0].phrase, third.phrases[0].box_xyxy) == ("left dog", (0, 0, 20, 20))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "[]", "it has no list `images`"),
        (
            "x.json",
            json.dumps({"images": [{"id": 1, "file_name": "z.png"}]}),
            "give its folder with --images",
        ),
        (
            "x.jsonl",
            '{"image": "a.png"}\n{"text": 1}\n',
            "x.jsonl, line 2: expected an object with `image`",
        ),
        ("x.yaml", "a: 1", "it has no `names`"),
        ("x.yaml", "names: [a]", "has no split val or valid or validation or test or train"),
        ("x.txt", "", "expected a .json"),
    ],
)
def test_the_error_names_what_is_wrong(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(RunError, match=message):
        read_dataset(tmp_path / name, problems=Problems(is_strict=True))
