"""The format of a dataset by its files."""

from dataclasses import replace
from pathlib import Path

from diptych_client.annotate.job import find_images
from diptych_client.evaluation.dataset import Dataset, Folder, LabelledImage
from diptych_client.evaluation.readers.coco import read_coco
from diptych_client.evaluation.readers.hugging_face import is_hugging_face, read_hugging_face
from diptych_client.evaluation.readers.json_lines import read_json_lines
from diptych_client.evaluation.readers.voc import read_voc
from diptych_client.evaluation.readers.yolo import read_yolo
from diptych_client.long_runs import RunError

_YOLO_FILES = ("data.yaml", "dataset.yaml")
_JSON_LINES = ("*.jsonl", "*/metadata.jsonl")
_COCO_FILES = (
    "annotations.json",
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "annotations/instances_*.json",
    "*.json",
)


def read_dataset(path: Path, images: Path | None = None, split: str | None = None) -> Dataset:
    """Read a dataset of any known format; `images` is the folder of its images, if elsewhere."""
    dataset = _read(path, images, split)
    if images is not None and dataset.store != Folder(images):
        known = f"the labels in {path} say where their images are"
        raise RunError(f"--images is for COCO and JSON lines; {known}")
    return replace(dataset, name=" ".join(filter(None, (path.resolve().name, split))))


def _read(path: Path, images: Path | None, split: str | None) -> Dataset:
    if path.is_file():
        return _read_file(path, images, split)
    if not path.is_dir():
        raise RunError(f"{path} does not exist")
    if yolo := _first(path, None, *_YOLO_FILES):
        return read_yolo(yolo, split)
    if (path / "Annotations").is_dir():
        return read_voc(path, split)
    if is_hugging_face(path):
        return read_hugging_face(path, split)
    if found := _first(path, split, *_JSON_LINES):
        return read_json_lines(found, images)
    if found := _first(path, split, *_COCO_FILES):
        return read_coco(found, images)
    if split is not None:
        raise RunError(f"{path} has no label file of the split {split}")
    unlabelled = [LabelledImage(image) for image in find_images(path)]
    if not unlabelled:
        expected = "neither labels of a known format nor a JPEG, PNG or WebP file"
        raise RunError(f"{path} contains {expected}")
    return Dataset(unlabelled, Folder(path))


def _read_file(path: Path, images: Path | None, split: str | None) -> Dataset:
    suffix = path.suffix.lower()
    if split is not None and suffix in (".json", ".jsonl"):
        hint = "omit --split, or give the folder with the files of all splits"
        raise RunError(f"{path} is one file: {hint}")
    match suffix:
        case ".json":
            return read_coco(path, images)
        case ".jsonl":
            return read_json_lines(path, images)
        case ".yaml" | ".yml":
            return read_yolo(path, split)
        case ".parquet" | ".arrow":
            return read_hugging_face(path, split)
    known = ".json (COCO), .jsonl, .yaml (YOLO) or .parquet file"
    raise RunError(f"{path}: expected a {known}, or a folder")


def _first(folder: Path, split: str | None, *patterns: str) -> Path | None:
    """Return the only match of the first pattern with one; raise `RunError` for several."""
    for pattern in patterns:
        names = sorted(each.relative_to(folder).as_posix() for each in folder.glob(pattern))
        match [name for name in names if split is None or split in name]:
            case [found]:
                return folder / found
            case [_, *_] as several:
                listed = f"several label files ({', '.join(several)})"
                raise RunError(f"{folder} has {listed}: choose one by --split, or give its path")
    return None
