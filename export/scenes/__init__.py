"""Rendered scenes of coloured shapes and a word: the small world that the embedded checkpoints know."""

from export.scenes.questions import questions
from export.scenes.render import render_scene
from export.scenes.sampling import sample_scene
from export.scenes.scene import Background, Scene, SceneObject, Word
from export.scenes.scoring import Scorecard, Tally, score_answer
from export.scenes.truth import Question, Truth

__all__ = [
    "Background",
    "Question",
    "Scene",
    "SceneObject",
    "Scorecard",
    "Tally",
    "Truth",
    "Word",
    "questions",
    "render_scene",
    "sample_scene",
    "score_answer",
]
