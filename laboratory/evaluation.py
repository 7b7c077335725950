"""Measures the accuracy of a running service on rendered scenes, whose true answers are known.

    python -m laboratory.evaluation [--url URL] [--models ID …] [--scenes N] [--clients N]

Requests are greedy and unconstrained. Labels and texts must be equal; boxes and masks are compared
by intersection over union (IoU). A measure of the table pools the variants of its questions: right,
answered and expected are summed before they are divided. `-` means that nothing was measured.
"""

import argparse
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from diptych_client import (
    AnswerOptions,
    Client,
    Detection,
    DetectionsResult,
    ImageSize,
    Instance,
    InstancesResult,
    TextRegion,
    TextRegionsResult,
    TextResult,
    UnsupportedTask,
)
from diptych_client.geometry import Mask
from diptych_client.matching import LabelledBox, match, pairwise_iou
from diptych_client.results import Result, box_of
from export.scenes import Scene, render_scene
from laboratory.questions import Question, questions
from laboratory.scenes import PLAIN_PX, evaluation_scene, png
from loadtest.figures import table

Measure = Literal[
    "exact",  # share of answers that are equal: text, or words and their places
    "exact_if_any",  # the same, over questions whose true answer is not empty
    "empty",  # share of empty answers, over questions whose true answer is empty
    "f1_at_50",  # F1 of boxes; a match has the same label and an IoU of at least 0.5
    "f1_at_75",
    "mask_iou",  # mean IoU
]
Render = Callable[[Scene], Image.Image]

_UNCONSTRAINED = AnswerOptions(constrained=False)
_SAME_WORD_IOU = 0.5


@dataclass(frozen=True, slots=True)
class Tally:
    """Number of right answers (or sum of IoUs), of given answers and of expected ones."""

    num_right: float = 0.0
    num_answered: int = 0
    num_expected: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.num_right + other.num_right,
            self.num_answered + other.num_answered,
            self.num_expected + other.num_expected,
        )

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; the accuracy if each question has one answer."""
        total = self.num_answered + self.num_expected
        return 2 * self.num_right / total if total else 1.0


Measures = dict[Measure, Tally]


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Tallies by question name and measure."""

    tallies: dict[tuple[str, Measure], Tally] = field(default_factory=dict)

    def tally(self, name: str, measure: Measure) -> Tally:
        return self.tallies.get((name, measure), Tally())

    def add(self, name: str, measures: Measures) -> None:
        for measure, tally in measures.items():
            self.tallies[name, measure] = self.tally(name, measure) + tally

    def pooled(self, name: str, measure: Measure) -> float | None:
        """Return a measure of all questions of a task or variant; None without any."""
        total = Tally()
        for (question, other), tally in self.tallies.items():
            if other == measure and f"{question} ".startswith(f"{name} "):
                total += tally
        return total.f1 if total.num_answered + total.num_expected else None


def evaluate(
    client: Client, model: str, render: Render, num_scenes: int, num_clients: int = 1
) -> Scorecard:
    """Score the answers of `model` to all questions that it offers about `num_scenes` scenes."""

    def answer_scene(index: int) -> list[tuple[str, Measures]]:
        scene = evaluation_scene(index)
        image = render(scene)
        file = png(image)
        rows = []
        for question in questions(scene):
            scaled = question.scaled(image.size)
            task, parameters = scaled.task, scaled.parameters
            try:
                answer = client.predict(file, task, parameters, model=model, options=_UNCONSTRAINED)
            except UnsupportedTask:
                continue
            rows.append((question.name, score_answer(answer.result, scaled, answer.image)))
        return rows

    scorecard = Scorecard()
    with ThreadPoolExecutor(num_clients) as pool:
        scenes = pool.map(answer_scene, range(num_scenes))
        for rows in tqdm(scenes, model, num_scenes, disable=None):
            for name, measures in rows:
                scorecard.add(name, measures)
    return scorecard


def score_answer(result: Result, question: Question, image: ImageSize) -> Measures:
    """Score a result; raise ValueError if it has another kind than the `scaled` question's task."""
    match question.truth, result:
        case TextResult(text), TextResult(answer):
            return _exactness(answer == text, answer, text)
        case DetectionsResult(boxes), DetectionsResult(detections):
            return _detection_measures(detections, boxes)
        case InstancesResult(expected), InstancesResult(instances):
            return {"mask_iou": Tally(_mask_iou(instances, expected, image), 1, 1)}
        case TextRegionsResult(words), TextRegionsResult(regions):
            is_exact = len(regions) == len(words)
            for region, word in zip(regions, words, strict=False):
                is_exact = is_exact and _is_same_word(region, word)
            return _exactness(is_exact, regions, words)
    raise ValueError(f"the result of {question.task} is {type(result).__name__}")


def _exactness(is_exact: bool, answer: Sized, expected: Sized) -> Measures:
    if expected:
        return {"exact": _claim(is_exact), "exact_if_any": _claim(is_exact)}
    return {"exact": _claim(is_exact), "empty": _claim(not answer)}


def _claim(is_right: bool) -> Tally:
    return Tally(float(is_right), 1, 1)


def _detection_measures(answers: Sequence[Detection], truths: Sequence[Detection]) -> Measures:
    if not truths:
        return {"empty": _claim(not answers)}
    kinds = Counter(pair.kind for pair in match(_labelled(truths), _labelled(answers)))
    num_right = kinds["right"] + kinds["loosely placed"]
    return {
        "f1_at_50": Tally(num_right, len(answers), len(truths)),
        "f1_at_75": Tally(kinds["right"], len(answers), len(truths)),
    }


def _labelled(detections: Sequence[Detection]) -> list[LabelledBox]:
    return [LabelledBox(detection.label, detection.box_xyxy) for detection in detections]


def _mask_iou(answers: Sequence[Instance], truths: Sequence[Instance], image: ImageSize) -> float:
    """Return the IoU of the unions of all instances."""
    answered = _union(answers, image)
    expected = _union(truths, image)
    num_pixels = (answered | expected).sum()
    return float((answered & expected).sum() / num_pixels) if num_pixels else 0.0


def _union(instances: Sequence[Instance], image: ImageSize) -> Mask:
    mask = np.zeros((image.height, image.width), np.bool_)
    for instance in instances:
        mask |= instance.to_mask(image)
    return mask


def _is_same_word(region: TextRegion, word: TextRegion) -> bool:
    ious = pairwise_iou([box_of(region)], [box_of(word)])
    return region.text == word.text and bool(ious[0, 0] >= _SAME_WORD_IOU)


_BOXES: tuple[Measure, ...] = ("f1_at_50", "f1_at_75", "empty")
_WORDS: tuple[Measure, ...] = ("exact", "exact_if_any", "empty")
# rows of the table: a task or variant, and its measures
ROWS: dict[str, tuple[Measure, ...]] = {
    "captioning short": ("exact",),
    "captioning detailed": ("exact",),
    "object_detection": _BOXES,
    "dense_region_captioning": _BOXES,
    "region_proposal": _BOXES,
    "open_vocabulary_detection": _BOXES,
    "phrase_grounding": ("f1_at_50", "f1_at_75"),
    "instance_segmentation": ("mask_iou",),
    "ocr": _WORDS,
    "ocr_with_regions": _WORDS,
    "region_description category": ("exact",),
    "region_description description": ("exact",),
    "region_description text": ("exact",),
    "visual_question_answering": ("exact", "empty"),
}


def accuracy_table(scorecards: Mapping[str, Scorecard]) -> str:
    """Return a table with a row per task or variant and a column per model."""
    rows = []
    for name, measures in ROWS.items():
        row = [f"{name}: {' / '.join(measures)}"]
        for scorecard in scorecards.values():
            values = [scorecard.pooled(name, measure) for measure in measures]
            is_measured = any(value is not None for value in values)
            row.append(" / ".join(map(_cell, values)) if is_measured else "-")
        rows.append(row)
    return table(["measure", *scorecards], rows)


def _cell(value: float | None) -> str:
    """Return hundredths, rounded down, so that a shown bar is reached."""
    if value is None:
        return "-"
    return f"{math.floor(100 * value + 1e-9) / 100:.2f}"  # forgives float error


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate models of a running service and print the table."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.evaluation", description=summary)
    default = "default: %(default)s"
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:3000", help=f"of the service; {default}")
    add("--models", nargs="+", metavar="ID", help="default: all served models")
    add("--scenes", type=int, default=60, metavar="N", help=default)
    add("--clients", type=int, default=1, metavar="N", help=f"concurrent requests; {default}")
    parsed = parser.parse_args(arguments)
    with Client(parsed.url) as client:
        models = parsed.models or [model.id for model in client.models()]
        scorecards = {}
        for model in models:
            scorecards[model] = evaluate(client, model, _plain, parsed.scenes, parsed.clients)
    print(f"{parsed.scenes} scenes\n\n{accuracy_table(scorecards)}")


def _plain(scene: Scene) -> Image.Image:
    return render_scene(scene, PLAIN_PX)


if __name__ == "__main__":
    main()
