"""Rendered scenes of everyday things and text, on which the embedded checkpoints are trained beside
the coloured shapes of `export.scenes`.

seed -> scene (sampling) -> image (rendering)
-> questions with true answers (questions), of the kinds of `export.scenes.truth`

Glyphs and fonts are those of Debian's packages, textures those of scikit-image's wheel: `python -m
laboratory.things` fetches them into a folder (material). Only training and its evaluation read it.
"""

from laboratory.things.material import Material
from laboratory.things.questions import thing_questions
from laboratory.things.rendering import render_things
from laboratory.things.sampling import sample_things
from laboratory.things.scene import ThingScene

__all__ = ["Material", "ThingScene", "render_things", "sample_things", "thing_questions"]
