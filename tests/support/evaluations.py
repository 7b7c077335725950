"""Small labelled datasets in every format, and predictions made by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from diptych_client.evaluation.questions import Prediction
from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.results import Detection, Item
from tests.support.image_files import encoded

SIZE = ImageSize(100, 80)
CLASSES = ("car", "dog")
OBJECTS: dict[str, tuple[tuple[str, BoxXyxy], ...]] = {
    "a.png": (("car", (10.0, 10.0, 40.0, 30.0)), ("dog", (50.0, 20.0, 90.0, 60.0))),
    "b.png": (("dog", (0.0, 0.0, 20.0, 20.0)),),
    "c.png": (),
}


def prediction(
    items: Sequence[Item] = (), text: str | None = None, image: ImageSize = SIZE
) -> Prediction:
    return Prediction(tuple(items), text, image)


def detection(label: str, box: BoxXyxy, score: float | None = 0.9) -> Detection:
    return Detection(box, label, score)


def picture(index: int) -> Image.Image:
    return Image.new("RGB", (SIZE.width, SIZE.height), (index * 40, 90, 120))


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(OBJECTS):
        picture(index).save(folder / name)


def write_coco(folder: Path) -> Path:
    write_images(folder / "images")
    images = []
    annotations: list[dict[str, object]] = []
    for image_id, (name, labelled) in enumerate(OBJECTS.items(), 1):
        images.append({"id": image_id, "file_name": name, "width": 100, "height": 80})
        for label, (x1, y1, x2, y2) in labelled:
            ids = {"id": len(annotations) + 1, "image_id": image_id}
            place = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1.0}
            annotations.append(ids | {"category_id": 7 + CLASSES.index(label)} | place)
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(CLASSES)]
    document = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def write_yolo(folder: Path, images: str = "images/val", labels: str = "labels/val") -> Path:
    write_images(folder / images)
    (folder / labels).mkdir(parents=True, exist_ok=True)
    for name, labelled in OBJECTS.items():
        lines = ""
        for label, (x1, y1, x2, y2) in labelled:
            numbers = (x1 + x2) / 200, (y1 + y2) / 160, (x2 - x1) / 100, (y2 - y1) / 80
            lines += " ".join(map(str, (CLASSES.index(label), *numbers))) + "\n"
        if lines:
            (folder / labels / name.replace(".png", ".txt")).write_text(lines)
    text = "path: /elsewhere\ntrain: images/train\nval: images/val\nnames: [car, dog]\n"
    (folder / "data.yaml").write_text(text)
    return folder


def write_voc(folder: Path, images: str = "JPEGImages", annotations: str = "Annotations") -> Path:
    write_images(folder / images)
    (folder / annotations).mkdir(exist_ok=True)
    for name, labelled in OBJECTS.items():
        objects = ""
        for label, (x1, y1, x2, y2) in labelled:
            corners = (
                f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
            )
            objects += f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>"
        text = f"<annotation><filename>{name}</filename>{objects}</annotation>"
        (folder / annotations / name.replace(".png", ".xml")).write_text(text)
    return folder


def write_json_lines(folder: Path) -> Path:
    write_images(folder)
    rows = []
    for name, labelled in OBJECTS.items():
        objects = [{"label": label, "box": box} for label, box in labelled]
        rows.append({"image": name, "objects": objects})
    (folder / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write_parquet(folder: Path) -> Path:
    """Write as Hugging Face's library does: images as bytes, classes as a ClassLabel."""
    rows = []
    for index, (name, labelled) in enumerate(OBJECTS.items()):
        objects = {
            "bbox": [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in labelled],
            "category": [CLASSES.index(label) for label, _ in labelled],
        }
        rows.append({"image": {"bytes": encoded(picture(index)), "path": name}, "objects": objects})
    label = {"names": list(CLASSES), "_type": "ClassLabel"}
    kind = {"names": ["x"], "_type": "ClassLabel"}  # not the class
    feature = {"bbox": {}, "category": label, "kind": kind}
    features = {"objects": {"feature": feature, "_type": "Sequence"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, folder / "val-00000-of-00001.parquet", row_group_size=2)
    return folder


def write_roboflow_yolo(folder: Path) -> Path:
    """Write the paths of data.yaml relative to a folder below it."""
    write_yolo(folder, "valid/images", "valid/labels")
    names = "train: ../train/images\nval: ../valid/images\nnames: [car, dog]\n"
    (folder / "data.yaml").write_text(names)
    return folder


def write_yolo_of_label_studio(folder: Path) -> Path:
    """Write the classes to classes.txt instead of a data.yaml."""
    write_yolo(folder)
    (folder / "data.yaml").rename(folder / "classes.txt").write_text("car\ndog\n")
    (folder / "notes.json").write_text("{}")
    return folder


def write_cvat(folder: Path) -> Path:
    write_images(folder / "images")
    rows = ""
    for number, (name, labelled) in enumerate(OBJECTS.items()):
        boxes = ""
        for label, (x1, y1, x2, y2) in labelled:
            boxes += f'<box label="{label}" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>'
        rows += f'<image id="{number}" name="{name}" width="100" height="80">{boxes}</image>'
    (folder / "annotations.xml").write_text(f"<annotations>{rows}</annotations>")
    return folder


def write_label_studio(folder: Path) -> Path:
    write_images(folder / "images")
    tasks = []
    for name, labelled in OBJECTS.items():
        results = []
        for label, (x1, y1, x2, y2) in labelled:
            percent = {"x": x1, "y": y1 / 0.8, "width": x2 - x1, "height": (y2 - y1) / 0.8}
            value = {**percent, "rotation": 0, "rectanglelabels": [label]}
            size = {"original_width": SIZE.width, "original_height": SIZE.height}
            results.append({"type": "rectanglelabels", "value": value, **size})
        image = f"/data/upload/1/0123abcd-{name}"
        tasks.append({"data": {"image": image}, "annotations": [{"result": results}]})
        (folder / "images" / name).rename(folder / "images" / f"0123abcd-{name}")
    (folder / "project-1.json").write_text(json.dumps(tasks))
    return folder
