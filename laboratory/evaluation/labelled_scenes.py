"""Scenes as JSON lines with the labels of several tasks, for `diptych evaluate`.

images/
labels.jsonl     objects with boxes, the word, two questions
phrases.jsonl    one phrase with box and outline, of scenes with an object of a unique name
"""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from export.scenes import Scene
from export.scenes.geometry import box_xyxy, outline_xy
from export.scenes.questions import question_answering
from export.scenes.scene import CANVAS_PX
from export.scenes.truth import TextTruth
from laboratory.evaluation.client import evaluation_scene
from laboratory.evaluation.conditions import Condition

_QUESTIONS = ("visual_question_answering count", "visual_question_answering color")


def write_labelled_scenes(folder: Path, condition: Condition, scene_indices: Iterable[int]) -> None:
    """Render evaluation scenes under a condition, whose images are square, with their labels."""
    (folder / "images").mkdir(parents=True)
    labels = []
    phrases = []
    for index in scene_indices:
        scene = evaluation_scene(index)
        image = condition(scene)
        name = f"images/{index:06}.{image.media_type.rpartition('/')[2]}"
        (folder / name).write_bytes(image.data)
        scale = image.size_wh[0] / CANVAS_PX
        labels.append({"image": name, **_labels(scene, scale)})
        names = [drawn.name for drawn in scene.objects]
        alone = [drawn for drawn in scene.objects if names.count(drawn.name) == 1]
        if alone:
            ring = _scaled(chain.from_iterable(outline_xy(alone[0])), scale)
            phrase = {"phrase": alone[0].name, "box": _scaled(box_xyxy(alone[0]), scale)}
            phrases.append({"image": name, "phrases": [{**phrase, "segmentation": [ring]}]})
    for file, rows in (("labels.jsonl", labels), ("phrases.jsonl", phrases)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / file).write_text(lines, encoding="utf-8")


def _labels(scene: Scene, scale: float) -> dict[str, object]:
    objects = []
    for drawn in scene.objects:
        objects.append({"label": drawn.shape, "box": _scaled(box_xyxy(drawn), scale)})
    return {
        "objects": objects,
        "text": scene.word.text if scene.word else "",
        "questions": list(_questions(scene)),
    }


def _questions(scene: Scene) -> Iterator[dict[str, str]]:
    first = scene.objects[0] if scene.objects else None
    for asked in question_answering(scene, first, absent_name="red circle"):
        if asked.name in _QUESTIONS and isinstance(asked.truth, TextTruth):
            yield {"question": str(asked.parameters["question"]), "answer": asked.truth.text}


def _scaled(numbers: Iterable[float], scale: float) -> list[float]:
    return [number * scale for number in numbers]
