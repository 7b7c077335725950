"""A dataset to tune on, of any known format, without the images that cannot be read."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from export.checkpoints.errors import TuningError
from export.tuning.foreign_labels import read_voc, read_yolo
from export.tuning.labels import ImageFolder, LabelledImage, read_coco, read_json_lines

_SUFFIXES = (".json", ".jsonl", ".yaml", ".yml")
_YOLO_FILES = ("data.yaml", "dataset.yaml")


@dataclass(frozen=True, slots=True)
class Dataset:
    """The labelled images of a dataset, and what is wrong with those that were left out."""

    images: tuple[LabelledImage, ...]
    left_out: tuple[str, ...]


def read_labels(path: Path, images: Path | None = None) -> Dataset:
    """Read a label file or a folder of a known format; `images` is another folder of its images.

    Raise `TuningError` for a missing or malformed dataset, and for one without a readable image.
    """
    folder = ImageFolder(images)
    match file := label_file(path):
        case Path(suffix=".jsonl"):
            rows = read_json_lines(file, folder)
        case Path(suffix=".json"):
            rows = read_coco(file, folder)
        case Path(suffix=".yaml" | ".yml") if images is not None:
            raise TuningError(f"--images is not for YOLO: {file} says where its images are")
        case Path(suffix=".yaml" | ".yml"):
            rows = read_yolo(file, folder)
        case _:
            rows = read_voc(file, folder)
    labelled = tuple(tqdm(rows, desc="reading", unit=" images", leave=False, disable=None))
    if not labelled:
        cause = f": {folder.left_out[0]}" if folder.left_out else ""
        raise TuningError(f"{file} has no image that can be read; one with labels is needed{cause}")
    if file.suffix not in (".json", ".jsonl") and not any(each.objects for each in labelled):
        looked_for = "labels/….txt beside images/, or objects in Annotations/….xml"
        raise TuningError(f"{file}: no labels found for {len(labelled)} images: {looked_for}")
    return Dataset(labelled, tuple(folder.left_out))


def label_file(path: Path) -> Path:
    """Return the file of the labels, of Pascal VOC the folder; raise `TuningError`."""
    if path.is_file() and path.suffix in _SUFFIXES:
        return path
    found = [path / name for name in _YOLO_FILES if (path / name).is_file()]
    if not found and (path / "Annotations").is_dir():
        return path
    found = found or sorted(each for each in path.glob("*") if each.suffix in (".json", ".jsonl"))
    if len(found) != 1:
        what = f"a folder with {len(found)} such files" if path.is_dir() else "neither"
        raise TuningError(
            "DATA must be a .json (COCO), .jsonl or .yaml (YOLO) file, a folder with one, or a"
            f" folder of Pascal VOC with Annotations; {path} is {what}"
        )
    return found[0]
