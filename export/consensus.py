"""Measures the labels that both embedded models agree on: `diptych annotate --consensus` on scenes with known boxes.

    python -m export.consensus [--scenes N] [--iou I]

Prints for each condition the precision of the accepted boxes and their coverage, the share of the true boxes that they
find; of each model alone; and of each model alone with as many boxes, its best by score. A box is right if it has
the label and an IoU of at least 0.5 with the true one. Needs requirements-dev.txt, for `diptych annotate`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from export.calibration import SCENE_CONDITIONS
from export.evaluation import CONDITIONS
from export.evaluation.coco_scenes import write_coco_scenes
from export.evaluation.service_process import run_diptych, service_process
from export.scenes.scene import SHAPES
from export.scenes.scoring import Tally, match_boxes
from export.scenes.truth import LabelledBox

MODELS = ("florence-2-mini", "paligemma-mini")
CONSENSUS = "consensus"
_TASK = "open_vocabulary_detection"

Boxes = Mapping[str, Sequence[Mapping[str, Any]]]  # boxes with label and score, by image


def main(arguments: Sequence[str] | None = None) -> None:
    """Label the scenes of each condition and print the table."""
    parsed = _parse(arguments)
    print(f"| condition | boxes of | precision | coverage | precision with as many boxes |\n{'|---' * 5}|")
    with TemporaryDirectory() as temporary, service_process(1, DIPTYCH_MODELS=",".join(MODELS)) as client:
        for condition in SCENE_CONDITIONS:
            scenes, out = Path(temporary, condition), Path(temporary, f"{condition}-labels")
            write_coco_scenes(scenes, [CONDITIONS[condition]], range(parsed.scenes))
            _annotate(client, scenes / "images", out, parsed.iou)
            for row in _rows(scenes, out):
                print(f"| {condition} | {row} |", flush=True)


def _annotate(client: httpx.Client, images: Path, out: Path, min_iou: float) -> None:
    labels = [word for shape in SHAPES for word in ("--labels", shape)]
    models = [word for model in MODELS for word in ("--model", model)]
    options = ("--task", _TASK, "--out", out, "--consensus", "--iou", str(min_iou))
    run_diptych(client, "annotate", images, *options, *labels, *models)


def _rows(scenes: Path, out: Path) -> Iterator[str]:
    truth, accepted = _coco_boxes(scenes / "annotations.json"), _coco_boxes(out / "annotations.json")
    yield _row(CONSENSUS, tally(accepted, truth), None)
    for model in MODELS:
        alone = _journal_boxes(out / f"journal-{model}.jsonl")
        yield _row(model, tally(alone, truth), tally(best(alone, sum(map(len, accepted.values()))), truth))


def _row(name: str, found: Tally, as_many: Tally | None) -> str:
    return f"{name} | {found.precision:.3f} | {found.recall:.3f} | {f'{as_many.precision:.3f}' if as_many else ''}"


def tally(answers: Boxes, truth: Boxes) -> Tally:
    """Return the right boxes, the answered and the true ones of all images."""
    total = Tally()
    for image, boxes in truth.items():
        expected = [LabelledBox(box["label"], box["box"]) for box in boxes]
        total += match_boxes(answers.get(image, ()), expected, 0.5)
    return total


def best(answers: Boxes, num_boxes: int) -> Boxes:
    """Return the boxes with the highest scores."""
    ranked = sorted(((image, box) for image in answers for box in answers[image]), key=lambda each: -each[1]["score"])
    chosen = defaultdict(list)
    for image, box in ranked[:num_boxes]:
        chosen[image].append(box)
    return chosen


def _coco_boxes(path: Path) -> Boxes:
    document = json.loads(path.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in document["images"]}
    labels = {category["id"]: category["name"] for category in document["categories"]}
    boxes: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for row in document["annotations"]:
        x, y, width, height = row["bbox"]
        box = {"box": (x, y, x + width, y + height), "label": labels[row["category_id"]], "score": row.get("score", 1)}
        boxes[names[row["image_id"]]].append(box)
    return boxes


def _journal_boxes(path: Path) -> Boxes:
    _, *lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["image"]["name"]: line["answer"]["result"]["detections"] for line in lines}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m export.consensus", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument("--iou", type=float, default=0.5, metavar="I", help="of boxes that agree; default: %(default)s")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
