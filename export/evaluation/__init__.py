"""How true the answers of a running service are, on scenes whose truth is known.

conditions   the image of a scene: plain, small, large, jpeg, blurred, stretched
asking       scenes and questions to a model over REST, answers scored
measures     the task-level measures: which questions make one number
tables       the numbers as Markdown
"""

from export.evaluation.asking import Evaluation, ScoredAnswer, ask_scenes, evaluate, evaluation_scene
from export.evaluation.conditions import CONDITIONS, Condition, SceneImage, png_image
from export.evaluation.tables import accuracy_table, question_table, robustness_table

__all__ = [
    "CONDITIONS",
    "Condition",
    "Evaluation",
    "SceneImage",
    "ScoredAnswer",
    "accuracy_table",
    "ask_scenes",
    "evaluate",
    "evaluation_scene",
    "png_image",
    "question_table",
    "robustness_table",
]
