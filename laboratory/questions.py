"""Questions of every task of the public API about a scene, with their true answers.

A question has the parameters of a REST request; geometry is in pixels of the scene's canvas until
`scaled`. It is the same for every model; the wording of answers is that of the embedded
checkpoints.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product, repeat
from typing import Any

from numpy.random import Generator, default_rng

from diptych_client.geometry import BoxXyxy, ImageSize, corners
from diptych_client.image_sources import scaled_result
from diptych_client.results import (
    Detection,
    DetectionsResult,
    Instance,
    InstancesResult,
    Result,
    TextRegion,
    TextRegionsResult,
    TextResult,
)
from export.scenes import CANVAS_PX, COLORS, SHAPES, Scene, SceneObject, box_xyxy, outline_xy

Parameters = Mapping[str, Any]

_CANVAS = ImageSize(CANVAS_PX, CANVAS_PX)


@dataclass(frozen=True, slots=True)
class Question:
    """A task with a request's parameters and its true result; `name`: its row of the table."""

    name: str
    task: str
    parameters: Parameters
    truth: Result

    def scaled(self, size_wh: tuple[int, int]) -> "Question":
        """Return the question about the scene rendered at this image size."""
        image = ImageSize(*size_wh)
        parameters = dict(self.parameters)
        if region := parameters.get("region"):
            sides = zip(region, size_wh * 2, strict=True)
            parameters["region"] = [edge * side / CANVAS_PX for edge, side in sides]
        truth = scaled_result(self.truth, _CANVAS, image)
        return replace(self, parameters=parameters, truth=truth)


_NUMBER_WORDS = ("no", "one", "two", "three", "four")


def questions(scene: Scene) -> Iterator[Question]:
    """Yield questions of every task; the object of one about an object depends on the seed."""
    rng = default_rng((scene.seed, len(scene.objects)))
    target = scene.objects[int(rng.integers(len(scene.objects)))] if scene.objects else None
    names = {drawn.name for drawn in scene.objects}
    absent = [name for name in map(" ".join, product(COLORS, SHAPES)) if name not in names]
    absent_name = absent[int(rng.integers(len(absent)))]
    yield _text("captioning", short_caption(scene), "short")
    yield _text("captioning", detailed_caption(scene), "detailed")
    shapes = [drawn.shape for drawn in scene.objects]
    descriptions = [drawn.description for drawn in scene.objects]
    for task, labels in (
        ("object_detection", shapes),
        ("dense_region_captioning", descriptions),
        ("region_proposal", [""] * len(shapes)),
    ):
        yield Question(task, task, {}, _boxes(labels, scene.objects))
    yield from open_vocabulary_detection(scene, target, absent_name, rng)
    yield from phrase_grounding(scene, rng)
    if target:
        task = "instance_segmentation"
        box = box_xyxy(target)
        instance = Instance(box, target.name, 1.0, (outline_xy(target),))
        truth = InstancesResult((instance,))
        yield Question(f"{task} phrase", task, {"phrase": target.name}, truth)
        yield Question(f"{task} region", task, {"region": list(box)}, truth)
    word = scene.word
    yield Question("ocr", "ocr", {}, TextResult(word.text if word else ""))
    words = (TextRegion(corners(word.box_xyxy), word.text, 1.0),) if word else ()
    yield Question("ocr_with_regions", "ocr_with_regions", {}, TextRegionsResult(words))
    task = "region_description"
    if word:
        yield _text(task, word.text, "text", word.box_xyxy)
    if target:
        yield _text(task, target.shape, "category", box)
        yield _text(task, target.description, "description", box)
    yield from question_answering(scene, target, absent_name)


def open_vocabulary_detection(
    scene: Scene, target: SceneObject | None, absent_name: str, rng: Generator
) -> Iterator[Question]:
    """Yield questions: a shape, a coloured shape, several labels (one absent), one absent.

    In a scene without objects the last one has another name: any detection is wrong, not only one
    of this label.
    """
    names = [drawn.name for drawn in scene.objects]
    several = rng.permutation([*names, absent_name]).tolist()
    if target:
        yield _labels("shape", [target.shape], scene)
        yield _labels("coloured shape", [target.name], scene)
        yield _labels("several", several, scene)
    yield _labels("absent" if target else "no object", [absent_name], scene)


def _labels(variant: str, labels: list[str], scene: Scene) -> Question:
    task = "open_vocabulary_detection"
    detections = list[Detection]()
    for label, drawn in product(labels, scene.objects):
        if label in (drawn.shape, drawn.name):
            detections += _boxes([label], [drawn]).detections
    truth = DetectionsResult(tuple(detections))
    return Question(f"{task} {variant}", task, {"labels": labels}, truth)


def phrase_grounding(scene: Scene, rng: Generator) -> Iterator[Question]:
    """Yield a question with the caption of all objects, and one with some random phrases."""
    if not scene.objects:
        return
    task = "phrase_grounding"
    phrases = object_phrases(scene)
    all_boxes = _boxes(phrases, scene.objects)
    yield Question(f"{task} caption", task, {"caption": joined(phrases)}, all_boxes)
    order = rng.permutation(len(phrases))[: int(rng.integers(1, len(phrases) + 1))]
    phrases = [phrases[index] for index in order]
    truth = _boxes(phrases, [scene.objects[index] for index in order])
    yield Question(f"{task} phrases", task, {"phrases": phrases}, truth)


def question_answering(
    scene: Scene, target: SceneObject | None, absent_name: str
) -> Iterator[Question]:
    shapes = [drawn.shape for drawn in scene.objects]
    if target:
        if shapes.count(target.shape) == 1:
            yield _question("color", f"what color is the {target.shape}?", target.color)
        yield _question("presence", f"is there {with_article(target.name)}?", "yes")
    yield _question("presence", f"is there {with_article(absent_name)}?", "no")
    yield _question("count", "how many shapes are there?", str(len(shapes)))
    yield _question("text", "what does the text say?", scene.word.text if scene.word else "")


def _question(variant: str, question: str, answer: str) -> Question:
    task = "visual_question_answering"
    return Question(f"{task} {variant}", task, {"question": question}, TextResult(answer))


def _text(task: str, text: str, detail: str, region: BoxXyxy | None = None) -> Question:
    parameters = {"detail": detail} | ({"region": list(region)} if region else {})
    return Question(f"{task} {detail}", task, parameters, TextResult(text))


def _boxes(labels: Sequence[str], objects: Sequence[SceneObject]) -> DetectionsResult:
    """Return the boxes of objects, left to right."""
    return DetectionsResult(tuple(map(Detection, map(box_xyxy, objects), labels, repeat(1.0))))


def with_article(name: str) -> str:
    """Return `a red circle`, `an orange star`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def joined(phrases: Sequence[str]) -> str:
    """Return `a red circle, a blue square and an orange star`."""
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def object_phrases(scene: Scene) -> list[str]:
    """Return `a red circle` for each object, left to right."""
    return [with_article(drawn.name) for drawn in scene.objects]


def short_caption(scene: Scene) -> str:
    """Return the objects, then ` with text` for a word; only `text` without objects."""
    objects = joined(object_phrases(scene))
    if not scene.word:
        return objects
    return f"{objects} with text" if objects else "text"


def detailed_caption(scene: Scene) -> str:
    """Return a sentence with number, background, sizes and colours, and one with the word."""
    shapes = f"{_NUMBER_WORDS[len(scene.objects)]} shape{'' if len(scene.objects) == 1 else 's'}"
    descriptions = joined([with_article(drawn.description) for drawn in scene.objects])
    listing = f": {descriptions}" if descriptions else ""
    text = f" The text says {scene.word.text}." if scene.word else ""
    return f"The image shows {shapes} on a {scene.background.brightness} background{listing}.{text}"
