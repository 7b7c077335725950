"""Scenes of coloured shapes as pictures: the subjects that each answer mentions."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.random import default_rng

from export.scenes import (
    COLORS,
    SHAPES,
    SIZES,
    BoxXYXY,
    Scene,
    SceneObject,
    Shape,
    Word,
    box_xyxy,
    load_font,
    polygon_xy,
    quad_xy,
    render_scene,
    sample_scene,
)
from laboratory.questions import Question, TextTruth, questions
from laboratory.training.data.mask_samples import Masks, shape_mask
from laboratory.training.data.pictures import (
    FIRST_LINE,
    Part,
    Picture,
    Span,
    SpannedQuestion,
    Subject,
)

SIZES_PX = (90, 512)  # sizes at which scenes are rendered: larger ones differ in the downscaling
_EASY_SHARES = (0.05, 0.55, 0.4, 0.0, 0.0)  # scenes with 0 to 4 shapes
_FULL_SHARES = (0.05, 0.15, 0.2, 0.28, 0.32)
_WORD_SHARE = 0.65
_ENCODER_WORD_SHARE = 0.9  # characters take longest to learn
_COUNT = re.compile(r"\b(?:one|two|three|four|[1-4])\b")


@dataclass(frozen=True, slots=True)
class Kind:
    """The distribution of a step's pictures: `difficulty` 0 means few objects, 1 mostly many."""

    difficulty: float = 1.0
    is_encoder: bool = False


def sample_pictures(first_seed: int, num: int, kind: Kind) -> list[Picture]:
    """Return the pictures of `num` seeds; a resumed run draws the same."""
    return [sample_picture(seed, kind) for seed in range(first_seed, first_seed + num)]


def sample_picture(seed: int, kind: Kind) -> Picture:
    """Return the picture of a seed."""
    rng = default_rng((seed, 1))
    easy = np.array(_EASY_SHARES) * (1 - kind.difficulty)
    shares = np.array(_FULL_SHARES) * kind.difficulty + easy
    num_objects = int(rng.choice(len(shares), p=shares / shares.sum()))
    word_share = _ENCODER_WORD_SHARE if kind.is_encoder else _WORD_SHARE
    return shape_picture(sample_scene(seed, num_objects, bool(rng.random() < word_share)))


def shape_picture(scene: Scene) -> Picture:
    """Return the picture of a scene."""
    parts = {index: object_part(drawn) for index, drawn in enumerate(scene.objects)}
    if scene.word is not None:
        parts[FIRST_LINE] = word_part(scene.word)
    asked = [
        SpannedQuestion(question, tuple(answer_spans(scene, question)))
        for question in questions(scene)
    ]
    is_light = scene.background.brightness == "light"
    return Picture(scene.seed, parts, is_light, tuple(asked), partial(render_scene, scene))


def object_part(drawn: SceneObject) -> Part:
    box = box_xyxy(drawn)
    classes = {
        "color": COLORS.index(drawn.color),
        "thing": SHAPES.index(drawn.shape),
        "size": SIZES.index(drawn.size),
    }
    return Part(
        drawn.name,
        box,
        quad_xy(box),
        classes,
        polygon_xy=partial(polygon_xy, drawn),
        mask=partial(_shape_mask, drawn.shape),
    )


@cache
def _shape_mask(shape: Shape) -> Masks:
    return shape_mask(shape)


def word_part(word: Word) -> Part:
    # the characters' edges, from the advances of the font
    font = load_font(word.font_face, word.font_size_px)
    left, top, right, bottom = word.box_xyxy
    scale = (right - left) / font.getlength(word.text)
    characters = list[tuple[str, BoxXYXY]]()
    for index, character in enumerate(word.text):
        start = left + font.getlength(word.text[:index]) * scale
        end = left + font.getlength(word.text[: index + 1]) * scale
        characters.append((character, (start, top, end, bottom)))
    box = word.box_xyxy
    return Part(word.text, box, quad_xy(box), characters=tuple(characters))


def answer_spans(scene: Scene, question: Question) -> Iterator[Span]:
    """Yield the spans of a text answer."""
    if not isinstance(question.truth, TextTruth):
        return
    text = question.truth.text
    everything = tuple(range(len(scene.objects)))
    word: tuple[Subject, ...] = (FIRST_LINE,) if scene.word else ()
    if question.task == "captioning":
        yield from caption_spans(scene, text)
    elif question.name.endswith("count"):
        yield Span(text, everything)
    elif scene.word and text == scene.word.text:
        yield Span(text, word)
    elif region := question.parameters.get("region"):
        (subject,) = (i for i in everything if list(box_xyxy(scene.objects[i])) == region)
        yield Span(text, (subject,))
    else:
        asked = str(question.parameters.get("question", ""))
        named = [
            index
            for index, drawn in enumerate(scene.objects)
            if asked.endswith((f" {drawn.name}?", f" the {drawn.shape}?"))
        ]
        yield Span(text, tuple(named[:1]))


def caption_spans(scene: Scene, text: str) -> Iterator[Span]:
    """Yield the spans of a caption: count, objects with articles, `text`, the word."""
    everything = tuple(range(len(scene.objects)))
    names = "|".join(f"(?:an? )?(?:{drawn.size} )?{drawn.name}" for drawn in scene.objects)
    marks = [
        names,
        _COUNT.pattern if scene.objects else "",
        r"(?<=with )text$|^text$" if scene.word else "",
    ]
    pattern = "|".join(mark for mark in marks if mark)
    end = 0
    sentence, _, word = text.partition(" The text says ")
    for match in re.finditer(pattern, sentence) if pattern else ():
        named = [
            index for index, drawn in enumerate(scene.objects) if match[0].endswith(drawn.name)
        ]
        yield Span(sentence[end : match.start()])
        others = (FIRST_LINE,) if match[0] == "text" else everything
        yield Span(match[0], tuple(named[:1]) or others)
        end = match.end()
    yield Span(sentence[end:])
    if word:
        spans = (Span(" The text says "), Span(word.removesuffix("."), (FIRST_LINE,)), Span("."))
        yield from spans
