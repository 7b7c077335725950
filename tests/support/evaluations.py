"""Small labelled datasets in every format, and predictions made by hand."""

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from PIL import Image

from diptych_client.geometry import BoxXyxy, ImageSize
from diptych_client.results import Detection, Item
from diptych_client.tools.questions import Prediction
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
