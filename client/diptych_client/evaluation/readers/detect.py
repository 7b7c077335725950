"""The format of a dataset by its files."""

from dataclasses import replace
from pathlib import Path

from diptych_client.evaluation.dataset import Dataset, LabelledImage, NoSuchSplit
from diptych_client.evaluation.foreign_files import read_json
from diptych_client.evaluation.readers.coco import read_coco
from diptych_client.evaluation.readers.cvat import read_cvat
from diptych_client.evaluation.readers.hugging_face import is_hugging_face, read_hugging_face
from diptych_client.evaluation.readers.json_lines import read_json_lines
from diptych_client.evaluation.readers.label_studio import is_label_studio, read_label_studio
from diptych_client.evaluation.readers.voc import read_voc
from diptych_client.evaluation.readers.yolo import YOLO_FILES, read_yolo, read_yolo_folder
from diptych_client.inputs import Problems
from diptych_client.inputs.files import Folder, find_images
from diptych_client.long_runs import RunError

LOOKED_FOR = (
    "data.yaml or labels/*.txt (YOLO), *.xml (Pascal VOC, CVAT), *.json (COCO, Label Studio),"
    " *.jsonl, *.parquet or *.arrow"
)
_LABEL_STUDIO_NOTES = "notes.json"  # beside its exports of COCO and YOLO
_MAX_SHOWN = 10
_JSON_LINES = ("*.jsonl", "*/metadata.jsonl")
_CVAT_FILES = ("annotations.xml", "*/annotations.xml")
_JSON_FILES = (
    "annotations.json",
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "annotations/instances_*.json",
    "*.json",
)


def read_dataset(
    path: Path,
    images: Path | None = None,
    split: str | None = None,
    problems: Problems | None = None,
) -> Dataset:
    """Read a dataset of any known format; `images` is the folder of its images, if elsewhere.

    Labels that are damaged are left out, and added to `problems`.
    """
    problems = Problems() if problems is None else problems
    inner = path
    while inner.is_dir():  # an unpacked archive often has one folder
        inside = [each for each in inner.iterdir() if not each.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name == "Annotations":
            break
        inner = inside[0]
    dataset = _read(inner, images, split, problems)
    if not dataset.images:
        first = problems.lines[0] if problems.lines else f"{path} has no image"
        raise RunError(f"no image is left: {first}")
    if images is not None and dataset.store != Folder(images):
        known = f"the labels in {path} say where their images are"
        raise RunError(f"--images is for COCO, JSON lines, CVAT and Label Studio; {known}")
    return replace(dataset, name=" ".join(filter(None, (path.resolve().name, split))))


def _read(path: Path, images: Path | None, split: str | None, problems: Problems) -> Dataset:
    if path.is_file():
        return _read_file(path, images, split, problems)
    if not path.is_dir():
        raise RunError(f"{path} does not exist")
    if yolo := _first(path, None, *YOLO_FILES):
        return read_yolo(yolo, split, problems)
    if (path / "Annotations").is_dir():
        return read_voc(path, split, problems)
    if is_hugging_face(path):
        return read_hugging_face(path, split, problems)
    if found := _first(path, split, *_JSON_LINES):
        return read_json_lines(found, problems, images)
    if (file := _first(path, None, *_CVAT_FILES)) and (cvat := read_cvat(file, problems, images)):
        return cvat
    if (yolo_folder := read_yolo_folder(path, split, problems)) is not None:
        return yolo_folder
    if found := _first(path, split, *_JSON_FILES):
        return _read_json(found, problems, images)
    if next(path.rglob("*.xml"), None) is not None:
        return read_voc(path, split, problems)
    if split is not None:
        raise NoSuchSplit(f"{path} has no label file of the split {split}; looked for {LOOKED_FOR}")
    unlabelled = [LabelledImage(image) for image in find_images(path)]
    if not unlabelled:
        missing = "contains neither labels nor a JPEG, PNG or WebP file"
        raise RunError(f"{path} {missing}; looked for {LOOKED_FOR}")
    return Dataset(unlabelled, Folder(path), note=f"no labels found: looked for {LOOKED_FOR}")


def _read_file(path: Path, images: Path | None, split: str | None, problems: Problems) -> Dataset:
    suffix = path.suffix.lower()
    if split is not None and suffix in (".json", ".jsonl", ".xml"):
        hint = "omit --split, or give the folder with the files of all splits"
        raise NoSuchSplit(f"{path} is one file: {hint}")
    match suffix:
        case ".json":
            return _read_json(path, problems, images)
        case ".jsonl":
            return read_json_lines(path, problems, images)
        case ".yaml" | ".yml":
            return read_yolo(path, split, problems)
        case ".parquet" | ".arrow":
            return read_hugging_face(path, split, problems)
        case ".xml":
            if (cvat := read_cvat(path, problems, images)) is not None:
                return cvat
            raise RunError(f"{path} is not of CVAT; of Pascal VOC give the folder")
    known = ".json (COCO, Label Studio), .jsonl, .yaml (YOLO), .xml (CVAT) or .parquet file"
    raise RunError(f"{path}: expected a {known}, or a folder")


def _read_json(path: Path, problems: Problems, images: Path | None) -> Dataset:
    document = read_json(path)
    if is_label_studio(document):
        return read_label_studio(path, document, problems, images)
    return read_coco(path, document, problems, images)


def _first(folder: Path, split: str | None, *patterns: str) -> Path | None:
    """Return the only match of the first pattern with one; raise `RunError` for several."""
    for pattern in patterns:
        found = (each for each in folder.glob(pattern) if each.name != _LABEL_STUDIO_NOTES)
        names = sorted(each.relative_to(folder).as_posix() for each in found)
        match [name for name in names if split is None or split in name]:
            case [only]:
                return folder / only
            case [_, *_] as several:
                shown = ", ".join(several[:_MAX_SHOWN])
                listed = f"several label files ({shown})"
                raise RunError(f"{folder} has {listed}: choose one by --split, or give its path")
    return None
