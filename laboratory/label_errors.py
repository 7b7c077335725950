"""Measures how `diptych review` finds label errors: `python -m laboratory.label_errors URL`.

Each kind of error is put into the labels of 5 % of 400 rendered scenes: a label is removed, added,
moved by 20 to 40 % of its sides, or of another class. AUROC is the probability that a scene with an
error ranks above one without. Cleanlab ranks by the same answers: pip install --group label-errors.
"""

import json
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from cleanlab.object_detection.rank import get_label_quality_scores
from numpy.random import Generator, default_rng
from sklearn.metrics import roc_auc_score

from export.scenes import SHAPES, render_scene
from laboratory.scenes import PLAIN_PX, evaluation_scene, labelled, write_coco
from loadtest.figures import table

KINDS = ("missing", "extra", "moved", "other class")
MODELS = ("florence-2-mini", "paligemma-mini")


def with_error(boxes: list[Any], kind: str, rng: Generator) -> list[Any]:
    """Return labels of which the first is wrong, or with one more."""
    (label, box), *others = boxes
    sides = np.subtract(box[2:], box[:2])
    if kind == "missing":
        return others
    if kind == "moved":
        shift = sides * rng.uniform(0.2, 0.4, 2) * rng.choice((-1, 1), 2)
        return [(label, [*(box[:2] + shift), *(box[2:] + shift)]), *others]
    other_label = SHAPES[SHAPES.index(label) - 1]
    if kind == "other class":
        return [(other_label, box), *others]
    corner = rng.uniform(0, PLAIN_PX - sides)
    return [*boxes, (other_label, [*corner, *(corner + sides)])]


def cleanlab_scores(scenes: list[Any], answers: list[Any]) -> Any:
    truths = []
    predictions = []
    for (_, boxes), answer in zip(scenes, answers, strict=True):
        labels = np.array([SHAPES.index(label) for label, _ in boxes], int)
        truths.append({"labels": labels, "bboxes": np.array([box for _, box in boxes])})
        by_class = np.full(len(SHAPES), None)
        for number, shape in enumerate(SHAPES):
            rows = [row for row in answer["result"]["detections"] if row["label"] == shape]
            by_class[number] = np.reshape([[*row["box"], row["score"]] for row in rows], (-1, 5))
        predictions.append(by_class)
    return -get_label_quality_scores(truths, predictions, verbose=False)


def cells(scores: Any, kinds: Any) -> list[str]:
    """Return the AUROC of each kind of error and of all, and the precision at 50."""
    values = []
    for errors in (*[kinds == kind for kind in KINDS], kinds != ""):
        is_counted = errors | (kinds == "")
        values.append(roc_auc_score(errors[is_counted], scores[is_counted]))
    values.append((kinds[np.argsort(-scores, kind="stable")[:50]] != "").mean())
    return list(map("{:.3f}".format, values))


def main(url: str) -> None:
    """Ask the models of a running service, and print the table."""
    rng = default_rng(0)
    kinds = np.full(400, "", object)
    kinds[::5] = KINDS * 20
    scenes: list[Any] = []
    for index, kind in enumerate(kinds):
        scene = evaluation_scene(index)
        image, boxes = labelled(render_scene(scene, PLAIN_PX), scene.objects)
        scenes.append((image, with_error(list(boxes), kind, rng) if kind else boxes))
    rows = []
    with TemporaryDirectory() as temporary:
        dataset = Path(temporary) / "scenes"
        out = Path(temporary) / "out"
        write_coco(dataset, scenes)
        command: list[Any] = [Path(sys.executable).with_name("diptych"), "--url", url, "review"]
        command += [dataset, "--out", out, "--task", "open_vocabulary_detection", "--models"]
        for models in (MODELS[:1], MODELS[1:], MODELS):
            subprocess.run([*command, ",".join(models)], check=True)
            ranking = map(json.loads, (out / "ranking.jsonl").read_text().splitlines())
            suspicions = {row["image"]: row["suspicion"] for row in ranking}
            scores = np.array([suspicions[image] for image in sorted(suspicions)])
            rows.append([" and ".join(models), *cells(scores, kinds)])
        log = list(map(json.loads, (out / "answers.jsonl").read_text().splitlines()))
        log.sort(key=itemgetter("image"))
    for model in MODELS:
        answers = [row["answer"] for row in log if row["model"] == model]
        rows.append([f"Cleanlab, {model}", *cells(cleanlab_scores(scenes, answers), kinds)])
    print(table(["ranked by", *KINDS, "all", "precision at 50"], rows))


if __name__ == "__main__":
    main(sys.argv[1])
