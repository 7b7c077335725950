"""Accuracy of a running service on scenes whose true answers are known: `python -m
laboratory.evaluation`.

client              questions about scenes over REST, and the score of each answer
conditions          the image file of a scene: plain, small, large, jpeg, blurred, recoloured,
                    stretched, 40px, 22px
coco_scenes         scenes as a dataset with COCO labels
accuracy_tables     task-level measures, and evaluations as Markdown
labelled_scenes     scenes as JSON lines with the labels of several tasks
guarantee_draws     draws of labelled images, and how often a choice breaks its promise
service_process     a service started for an evaluation

Commands over them:

precision           accuracy at each precision
calibration         calibrations of the scores
guarantees          how often `diptych annotate --labelled` breaks its promise
shifts              how often it notices images that are not like the labelled ones
"""

from laboratory.evaluation.accuracy_tables import accuracy_table, task_accuracy
from laboratory.evaluation.client import evaluate, evaluation_scene
from laboratory.evaluation.conditions import CONDITIONS, SceneImage, png_image

__all__ = [
    "CONDITIONS",
    "SceneImage",
    "accuracy_table",
    "evaluate",
    "evaluation_scene",
    "png_image",
    "task_accuracy",
]
