"""Measures the labels that both embedded models agree on: `diptych annotate --consensus` on scenes
with known boxes.

    python -m laboratory.evaluation.consensus [--conditions NAME …] [--scenes N] [--first-scene N]
    [--iou I]
                                          [--accept-scores S …]

Prints for each condition and minimum score the precision of the accepted boxes and their coverage,
the share of the true boxes that they find, beside the precision of each model alone with as many
boxes, its best by score; then all boxes of each model. A box is right if it has the label and an
IoU of at least 0.5 with the true one. A minimum score that is to be used should be chosen on other
scenes than those that measure it. Needs the dependency group `dev`.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from export.scenes.scene import SHAPES
from export.scenes.scoring import Tally, match_boxes
from export.scenes.truth import LabelledBox
from laboratory.evaluation import CONDITIONS
from laboratory.evaluation.calibration import SCENE_CONDITIONS
from laboratory.evaluation.coco_scenes import write_coco_scenes
from laboratory.evaluation.service_process import run_diptych, service_process

MODELS = ("florence-2-mini", "paligemma-mini")
_TASK = "open_vocabulary_detection"

Boxes = Mapping[str, Sequence[Mapping[str, Any]]]  # boxes with label and score, by image


def main(arguments: Sequence[str] | None = None) -> None:
    """Label the scenes of each condition and print the table."""
    parsed = _parse(arguments)
    as_many = " | ".join(f"{model} with as many boxes" for model in MODELS)
    print(f"| condition | boxes | precision | coverage | {as_many} |\n{'|---' * 6}|")
    with (
        TemporaryDirectory() as temporary,
        service_process(1, DIPTYCH_MODELS=",".join(MODELS)) as client,
    ):
        for condition in parsed.conditions:
            scenes = Path(temporary, condition)
            out = Path(temporary, f"{condition}-labels")
            numbers = range(parsed.first_scene, parsed.first_scene + parsed.scenes)
            write_coco_scenes(scenes, [CONDITIONS[condition]], numbers)
            truth = _coco_boxes(scenes / "annotations.json")
            for score in parsed.accept_scores:
                # the first sends all requests
                _annotate(client, scenes / "images", out, parsed.iou, score)
                print(f"| {condition} | {_consensus_row(truth, out, score)} |", flush=True)
            for model in MODELS:
                print(
                    f"| {condition} | {_row(model, tally(_journal_boxes(out, model), truth))}"
                    " | | |",
                    flush=True,
                )


def _annotate(
    client: httpx.Client, images: Path, out: Path, min_iou: float, accept_score: float
) -> None:
    labels = chain.from_iterable(("--labels", shape) for shape in SHAPES)
    models = chain.from_iterable(("--model", model) for model in MODELS)
    rule = ("--consensus", "--iou", str(min_iou), "--accept-score", str(accept_score))
    run_diptych(client, "annotate", images, "--task", _TASK, "--out", out, *rule, *labels, *models)


def _consensus_row(truth: Boxes, out: Path, score: float) -> str:
    accepted = _coco_boxes(out / "annotations.json")
    num_accepted = sum(map(len, accepted.values()))
    as_many = [
        tally(best(_journal_boxes(out, model), num_accepted), truth).precision for model in MODELS
    ]
    name = f"consensus, scores ≥ {score:g}" if score else "consensus"
    return " | ".join(
        [_row(name, tally(accepted, truth)), *(f"{precision:.3f}" for precision in as_many)]
    )


def _row(name: str, found: Tally) -> str:
    return f"{name} | {found.precision:.3f} | {found.recall:.3f}"


def tally(answers: Boxes, truth: Boxes) -> Tally:
    """Return the right boxes, the answered and the true ones of all images."""
    total = Tally()
    for image, boxes in truth.items():
        expected = [LabelledBox(box["label"], box["box"]) for box in boxes]
        total += match_boxes(answers.get(image, ()), expected, 0.5)
    return total


def best(answers: Boxes, num_boxes: int) -> Boxes:
    """Return the boxes with the highest scores."""
    found = list[tuple[str, Mapping[str, Any]]]()
    for image, boxes in answers.items():
        found += [(image, box) for box in boxes]
    found.sort(key=lambda each: -each[1]["score"])
    chosen = defaultdict(list)
    for image, box in found[:num_boxes]:
        chosen[image].append(box)
    return chosen


def _coco_boxes(path: Path) -> Boxes:
    document = json.loads(path.read_text(encoding="utf-8"))
    names = {image["id"]: image["file_name"] for image in document["images"]}
    labels = {category["id"]: category["name"] for category in document["categories"]}
    boxes: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for row in document["annotations"]:
        x, y, width, height = row["bbox"]
        box = {
            "box": (x, y, x + width, y + height),
            "label": labels[row["category_id"]],
            "score": row.get("score", 1),
        }
        boxes[names[row["image_id"]]].append(box)
    return boxes


def _journal_boxes(out: Path, model: str) -> Boxes:
    """Return all boxes that a model answered."""
    journal = out / f"journal-{model}.jsonl"
    _, *lines = map(json.loads, journal.read_text(encoding="utf-8").splitlines())
    return {line["image"]["name"]: line["answer"]["result"]["detections"] for line in lines}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(
        "python -m laboratory.evaluation.consensus", description=summary
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=SCENE_CONDITIONS,
        default=SCENE_CONDITIONS,
        metavar="NAME",
    )
    parser.add_argument(
        "--first-scene", type=int, default=0, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--accept-scores", type=float, nargs="+", default=[0.0], metavar="S", help="of both boxes"
    )
    parser.add_argument("--scenes", type=int, default=300, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--iou",
        type=float,
        default=0.5,
        metavar="I",
        help="of boxes that agree; default: %(default)s",
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
