"""Labels to learn, read as the evaluation reads them (tests/client/tools), and answers: the
family's parser reads each back as the labels that it was made of.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diptych_client import AnswerOptions
from diptych_client import TaskParameters as ClientParameters
from diptych_client.datasets.dataset import LabelledImage, TrueObject, TruePhrase, TrueQuestion
from diptych_client.datasets.formats.writing import DatasetFormat, Target, write_dataset
from diptych_client.datasets.inputs import ImageFile
from diptych_client.datasets.long_runs import Outputs
from diptych_client.datasets.records import Job
from diptych_client.tools.matching import LabelledBox
from export.errors import ExportError
from export.tuning.examples import Example, TuningImage, make_examples, read_labels
from tasks.catalog import CatalogEntry, TaskOverride
from tasks.families import FAMILIES
from tasks.parsing import AnsweredTask, GeneratedText
from tasks.prompts import Prompt
from tasks.results import BoxXyxy, DetectionsResult
from tasks.table import TaskParameters
from tests.support.catalog import CATALOG
from tests.support.client_answers import DETECTIONS, SIZE, record
from tests.support.evaluations import write_images, write_voc, write_yolo

SIZE_WH = (320, 240)
CAT = LabelledBox("cat", (9.0, 9.0, 60.0, 70.0))
DOG = LabelledBox("dog", (99.0, 50.0, 300.0, 200.0))
BIRD = LabelledBox("bird", (5.0, 5.0, 20.0, 20.0))
FLORENCE2 = CATALOG["florence-2-base"]
PALIGEMMA = CATALOG["paligemma-2-3b-pt-224"]
OPEN = "open_vocabulary_detection"
BOTH_FAMILIES = pytest.mark.parametrize("entry", [FLORENCE2, PALIGEMMA], ids=["florence", "gemma"])


def tuning_image(name: str, *boxes: LabelledBox, **labels: Any) -> TuningImage:
    objects = tuple(TrueObject(box.label, box.box_xyxy) for box in boxes)
    row = LabelledImage(ImageFile(name, 0, 0), **{"objects": objects} | labels)
    return TuningImage(Path(name), SIZE_WH, row)


IMAGE = tuning_image(
    "a.png",
    DOG,
    CAT,
    captions=("a cat and a dog", "two animals"),
    text="EXIT",
    questions=(TrueQuestion("how many?", ("2", "two", "2")),),
    phrases=(TruePhrase("the  big dog", DOG.box_xyxy), TruePhrase("cat", CAT.box_xyxy)),
)
NO_OBJECT = tuning_image("c.png")
DATASET = (IMAGE, tuning_image("b.png", BIRD), NO_OBJECT)


def text(segments: Prompt) -> str:
    return "".join(segment.text for segment in segments)


def examples(entry: CatalogEntry, task: str, *images: TuningImage) -> list[Example]:
    all_examples = []
    for of_image in make_examples(entry, task, images or DATASET, seed=0):
        all_examples += of_image
    return all_examples


def pairs(
    entry: CatalogEntry, task: str, image: TuningImage, *images: TuningImage
) -> list[tuple[str, str]]:
    """Return the prompts and answers about one of `images`."""
    rows = []
    for example in examples(entry, task, *images):
        if example.image == image.path:
            rows.append((text(example.prompt), text(example.answer)))
    return rows


def assert_read(
    entry: CatalogEntry,
    task: str,
    parameters: TaskParameters,
    answers: Sequence[str],
    expected: Sequence[LabelledBox],
) -> None:
    """Compare what the parser reads, boxes to a bin of 1000 on a side of 320 pixels."""
    texts = [GeneratedText(answer, (len(answer),), (-0.1,), "stop") for answer in answers]
    answered = AnsweredTask(entry, task, parameters, SIZE_WH)
    result = FAMILIES[entry.family].parse_answer(answered, texts)
    assert isinstance(result, DetectionsResult)
    assert [detection.label for detection in result.detections] == [box.label for box in expected]
    for detection, box in zip(result.detections, expected, strict=True):
        assert detection.box == pytest.approx(box.box_xyxy, abs=0.35)


def test_all_objects_are_written_from_left_to_right() -> None:
    task = "object_detection"
    ((prompt, answer),) = pairs(FLORENCE2, task, IMAGE)
    assert prompt == "Locate the objects with category name in the image."
    assert_read(FLORENCE2, task, TaskParameters(), [answer], (CAT, DOG))
    assert pairs(FLORENCE2, task, NO_OBJECT) == [(prompt, "")]
    ((_, answer),) = pairs(FLORENCE2, "region_proposal", IMAGE)
    unlabelled = [replace(box, label="") for box in (CAT, DOG)]
    assert_read(FLORENCE2, "region_proposal", TaskParameters(), [answer], unlabelled)


def test_crowds_are_not_learnt() -> None:
    crowd = TrueObject("cat", CAT.box_xyxy, is_crowd=True)
    image = tuning_image("a.png", objects=(crowd, TrueObject("dog", DOG.box_xyxy)))
    ((_, answer),) = pairs(FLORENCE2, "object_detection", image, image)
    assert_read(FLORENCE2, "object_detection", TaskParameters(), [answer], (DOG,))


def test_absent_names_are_left_out() -> None:
    ((prompt, answer),) = pairs(PALIGEMMA, OPEN, IMAGE)
    names = prompt.removeprefix("detect ").split(" ; ")
    assert sorted(names) == ["bird", "cat", "dog"]
    assert answer.count(" ; ") == 1
    assert_read(PALIGEMMA, OPEN, TaskParameters(labels=tuple(names)), [answer], (CAT, DOG))
    ((prompt, answer),) = pairs(PALIGEMMA, OPEN, NO_OBJECT)
    assert prompt in {f"detect {name}" for name in ("bird", "cat", "dog")}
    assert answer == ""
    assert examples(PALIGEMMA, OPEN) == examples(PALIGEMMA, OPEN)  # the same seed


@pytest.mark.parametrize(
    "entry", [FLORENCE2, replace(PALIGEMMA, one_name_per_prompt=True)], ids=["florence", "gemma"]
)
def test_one_name_in_each_prompt(entry: CatalogEntry) -> None:
    rows = pairs(entry, OPEN, IMAGE)
    assert len(rows) == 3
    for box in (CAT, DOG, BIRD):
        ((_, answer),) = (row for row in rows if f" {box.label}" in row[0])
        boxes = [] if box == BIRD else [box]
        assert_read(entry, OPEN, TaskParameters(labels=(box.label,)), [answer], boxes)


@BOTH_FAMILIES
def test_phrases_are_grounded(entry: CatalogEntry) -> None:
    rows = pairs(entry, "phrase_grounding", IMAGE, IMAGE)
    parameters = TaskParameters(phrases=("the big dog", "cat"))
    boxes = [replace(DOG, label="the big dog"), CAT]
    if entry is PALIGEMMA:
        boxes.reverse()  # one answer
    answers = [answer for _, answer in rows]
    assert_read(entry, "phrase_grounding", parameters, answers, boxes)


@BOTH_FAMILIES
def test_texts_are_the_answers(entry: CatalogEntry) -> None:
    captions = [answer for _, answer in pairs(entry, "captioning", IMAGE)]
    assert captions == list(IMAGE.labels.captions or ())
    assert [answer for _, answer in pairs(entry, "ocr", IMAGE)] == ["EXIT"]


def test_a_question_has_its_most_frequent_answer_and_the_template() -> None:
    task = "visual_question_answering"
    assert pairs(PALIGEMMA, task, IMAGE) == [("answer en how many?", "2")]
    entry = replace(FLORENCE2, tasks={task: TaskOverride("<DocVQA>{question}")})
    assert pairs(entry, task, IMAGE) == [("<DocVQA>how many?", "2")]


def test_florence2_repeats_the_region_after_its_text() -> None:
    region: BoxXyxy = (32.0, 24.0, 160.0, 120.0)
    image = tuning_image("a.png", text="EXIT", region=region)
    ((prompt, answer),) = pairs(FLORENCE2, "region_description", image, image)
    locations = "<loc_100><loc_100><loc_500><loc_500>"
    assert (prompt, answer) == (f"What does the region {locations} describe?", f"EXIT{locations}")


def test_labels_are_never_control_tokens() -> None:
    image = tuning_image("a.png", replace(CAT, label="<loc_5>"))
    (example,) = examples(FLORENCE2, "object_detection", image)
    assert [segment.is_control for segment in example.answer] == [False, True]


@pytest.mark.parametrize(
    ("entry", "task", "image", "message"),
    [
        (FLORENCE2, "object_detection", tuning_image("a", replace(CAT, label="a;b")), "';'"),
        (FLORENCE2, "object_detection", tuning_image("a", objects=None), "has no labels of object"),
        (PALIGEMMA, "object_detection", IMAGE, "does not offer object_detection"),
        (FLORENCE2, "visual_question_answering", IMAGE, "does not offer visual_question_answering"),
        (FLORENCE2, "instance_segmentation", IMAGE, "has no labels of instance_segmentation"),
        (
            FLORENCE2,
            "region_description",
            tuning_image("a", text="EXIT", region=(0.0, 0.0, 999.0, 9.0)),
            "within the image",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(
    entry: CatalogEntry, task: str, image: TuningImage, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        examples(entry, task, image)


def yolo_to_train_on(folder: Path) -> Path:
    yaml = write_yolo(folder) / "data.yaml"
    yaml.write_text(yaml.read_text().replace("train: images/train", "train: ../images/val"))
    return folder


def read(path: Path, images: Path | None = None) -> list[str]:
    """Return the names of a dataset's images."""
    labelled, _ = read_labels(path, path.parent / "work", images)
    return [image.path.name for image in labelled]


def test_damaged_labels_and_images_are_named_and_left_out(tmp_path: Path) -> None:
    folder = yolo_to_train_on(tmp_path / "data")
    with (folder / "labels" / "val" / "b.txt").open("a") as file:
        file.write("7 .5 .5 .1 .1")
    damaged = folder / "images" / "val" / "a.png"
    damaged.write_bytes(damaged.read_bytes()[:-20])  # its header is whole
    labelled, problems = read_labels(folder, tmp_path / "work")
    assert [image.path.name for image in labelled] == ["b.png", "c.png"]
    assert {image.size_wh for image in labelled} == {(100, 80)}
    with_boxes, without = labelled
    assert [box.label for box in with_boxes.boxes or ()] == ["dog"]
    assert not without.boxes
    label, image = problems.lines
    assert "b.txt, line 2: class 7 is not one of the 2 classes; object left out" in label
    assert "a.png: it cannot be read: " in image


def test_only_the_training_split_is_read(tmp_path: Path) -> None:
    """As Roboflow exports COCO, and as Pascal VOC names a split."""
    for split, name in (("train", "a.png"), ("valid", "b.png")):
        write_images(tmp_path / "data" / split)
        rows = {"images": [{"id": 1, "file_name": name}], "categories": [{"id": 1, "name": "cat"}]}
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}
        document = json.dumps(rows | {"annotations": [box]})
        (tmp_path / "data" / split / "_annotations.coco.json").write_text(document)
    archive = shutil.make_archive(str(tmp_path / "exported"), "zip", tmp_path / "data")
    assert read(Path(archive)) == ["a.png"]
    folder = write_voc(tmp_path / "voc")
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "train.txt").write_text("b\n")
    assert read(folder) == ["b.png"]


@pytest.mark.parametrize(
    ("entry", "dataset_format", "task"),
    [
        (FLORENCE2, "florence2", "object_detection"),
        (PALIGEMMA, "paligemma", OPEN),
    ],
)
def test_what_annotate_writes_is_learnt(
    entry: CatalogEntry, dataset_format: DatasetFormat, task: str, tmp_path: Path
) -> None:
    """A written suffix, read and made an answer again, is the same."""
    for number in range(8):
        Image.new("RGB", (SIZE.width, SIZE.height)).save(tmp_path / f"{number}.png")
    records = [record(DETECTIONS, f"{number}.png") for number in range(8)]
    job = Job(task, "some-model", ClientParameters(labels=["star", "circle"]), AnswerOptions())
    with Outputs(tmp_path / "out") as outputs:
        write_dataset(Target(dataset_format, outputs, tmp_path, job, val_share=0.5), records)
    labelled, _ = read_labels(tmp_path / "out", tmp_path / "work")
    rows = (tmp_path / "out" / "train" / "labels.jsonl").read_text().splitlines()
    assert 0 < len(labelled) == len(rows) < 8
    for example, row in zip(examples(entry, task, *labelled), rows, strict=True):
        assert text(example.answer) == json.loads(row)["suffix"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"image": "a.png", "objects": [{"label": "cat"}]}'], "line 1: expected an object"),
        (['{"image": "no.png", "caption": "a"}'], "there is no image 'no.png'"),
    ],
)
def test_a_dataset_without_one_good_label_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    write_images(folder)
    if lines:
        (folder / "labels.jsonl").write_text("\n".join(lines))
    with pytest.raises(ExportError, match=message):
        read(folder)
