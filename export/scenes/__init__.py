"""Rendered scenes of coloured shapes and at most one word, on which the embedded checkpoints are
trained.

seed -> scene (sampling) -> image (render)
-> questions with true answers (questions, truth) -> prompts of a model (prompts)
true answer, result of a model -> scores (scoring)
"""

from export.scenes.prompts import QuestionPrompt, question_prompts
from export.scenes.questions import questions
from export.scenes.render import render_scene
from export.scenes.sampling import sample_scene
from export.scenes.scene import Background, Scene, SceneObject, Word
from export.scenes.scoring import CONFIDENT_SCORE, Measure, Scorecard, Tally, score_answer
from export.scenes.truth import Question, Truth

__all__ = [
    "CONFIDENT_SCORE",
    "Background",
    "Measure",
    "Question",
    "QuestionPrompt",
    "Scene",
    "SceneObject",
    "Scorecard",
    "Tally",
    "Truth",
    "Word",
    "question_prompts",
    "questions",
    "render_scene",
    "sample_scene",
    "score_answer",
]
