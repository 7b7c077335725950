"""Accuracy of a running service on scenes whose true answers are known: `python -m
laboratory.evaluation`.

scenes              the image file of a scene under a condition, and datasets with COCO labels
client              questions about scenes over REST, and the score of each answer
calibration         command: calibrations of the scores
"""

from laboratory.evaluation.client import evaluate, predict
from laboratory.evaluation.scenes import CONDITIONS, SceneImage, encoded, evaluation_scene
from laboratory.scoring import accuracy_table

__all__ = [
    "CONDITIONS",
    "SceneImage",
    "accuracy_table",
    "encoded",
    "evaluate",
    "evaluation_scene",
    "predict",
]
