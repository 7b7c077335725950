"""Measures the accuracy of a running service on unseen scenes of things, by task and by class.

    python -m laboratory.things.accuracy MATERIAL [--url URL] [--models ID …] [--scenes N]
    [--clients N] [--renderer ours|held-out-fonts|chromium] [--condition NAME]

A value is followed by its 95 % interval: scenes are drawn with replacement. `class` rows are the
detection of one thing, `confused` rows what a thing is taken for. A model that does not detect
without labels has them from its answers to several labels, one of them absent. MATERIAL is the
folder of `python -m laboratory.things`.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track

from export.scenes import Measure, Question, Scorecard, Tally, score_answer
from export.scenes.overlap import box_iou, quad_iou
from export.scenes.scoring import match_boxes
from export.scenes.truth import DetectionsTruth, TextRegionsTruth, TextTruth
from laboratory.evaluation.client import answer_questions, offered_tasks, served_models
from laboratory.evaluation.conditions import CONDITIONS, PLAIN_PX, Condition, SceneImage
from laboratory.things import Material, ThingScene, render_things, sample_things, thing_questions
from laboratory.things.screenshots import take_screenshots
from loadtest.figures import table

FIRST_SEED = 900_000_000  # training uses smaller seeds only
_NO_THING_EVERY = 10
_SHOTS_AT_ONCE = 20
_MIN_IOU = 0.5
_NUM_DRAWS = 1000
_NUM_CONFUSIONS = 20
_BY_CLASS = "object_detection"
_BY_CLASS_OF_LABELS = "open_vocabulary_detection several"
_CLASS = "class "
_CONFUSED = "confused "
_RENDERERS = ("ours", "held-out-fonts", "chromium")
_SHOWN: tuple[Measure, ...] = ("exact", "exact_if_any", "empty", "f1_at_50", "f1_at_75", "mask_iou")

Asked = tuple[SceneImage, list[Question]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate models of a running service and print the tables."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser("python -m laboratory.things.accuracy", description=summary)
    add = parser.add_argument
    add("material", type=Path)
    add("--url", default="http://127.0.0.1:3000")
    add("--models", nargs="+", metavar="ID", help="default: all served models")
    add("--scenes", type=int, default=1000)
    add("--clients", type=int, default=1)
    add("--renderer", choices=_RENDERERS, default="ours")
    add("--condition", choices=CONDITIONS, default="plain")
    parsed = parser.parse_args(arguments)
    condition = CONDITIONS[parsed.condition]
    if parsed.renderer == "chromium" and condition.size_px != PLAIN_PX:
        parser.error(f"--condition {parsed.condition}: Chromium renders one size only")
    material = Material(parsed.material)
    console = Console(stderr=True)
    with httpx.Client(base_url=parsed.url, timeout=60) as client:
        for model in parsed.models or served_models(client):
            offered = offered_tasks(client, model)
            asked = asked_scenes(material, parsed.scenes, parsed.renderer, condition)
            with ThreadPoolExecutor(parsed.clients) as pool:
                scored = pool.map(partial(_answer, client, model, offered), asked)
                shown = track(scored, model, parsed.scenes, console=console)
                shown_as = f"{parsed.renderer}, {parsed.condition}"
                print(f"{model}, {parsed.scenes} scenes, {shown_as}\n")
                print(thing_table(list(shown)), flush=True)


def _answer(client: httpx.Client, model: str, offered: frozenset[str], asked: Asked) -> Scorecard:
    image, questions = asked
    questions = [question for question in questions if question.task in offered]
    by_class = _BY_CLASS if _BY_CLASS in offered else _BY_CLASS_OF_LABELS
    score = partial(score_thing_answer, by_class=by_class)
    return answer_questions(client, model, image, questions, score)


def asked_scenes(
    material: Material, num: int, renderer: str, condition: Condition
) -> Iterator[Asked]:
    """Yield images of unseen scenes with their questions."""
    if renderer == "chromium":
        for start in range(0, num, _SHOTS_AT_ONCE):
            shots = take_screenshots(material, FIRST_SEED + start, min(_SHOTS_AT_ONCE, num - start))
            for shot in shots:
                questions = [asked.question for asked in thing_questions(shot.scene)]
                yield condition.encode(shot.image), questions
        return
    for index in range(num):
        scene = unseen_scene(material, index, has_held_out_fonts=renderer == "held-out-fonts")
        image = render_things(scene, material, condition.size_px)
        yield condition.encode(image), [asked.question for asked in thing_questions(scene)]


def unseen_scene(material: Material, index: int, has_held_out_fonts: bool = False) -> ThingScene:
    """Return a scene that training has not seen; every tenth has no things."""
    num_things = 0 if index % _NO_THING_EVERY == _NO_THING_EVERY - 1 else None
    return sample_things(FIRST_SEED + index, material, num_things, None, has_held_out_fonts)


def score_thing_answer(
    result: Mapping[str, Any],
    question: Question,
    image_size_wh: tuple[int, int],
    by_class: str = _BY_CLASS,
) -> Scorecard:
    """Score an answer, also by word and by the order of its lines; that to `by_class` by class."""
    scorecard = score_answer(result, question, image_size_wh)
    tallies: dict[tuple[str, Measure], Tally] = {}
    match question.truth:
        case TextTruth(text) if question.name == "ocr" and text:
            words = Counter(text.split())
            read = Counter(result["text"].split())
            right = (words & read).total()
            tallies["ocr words", "exact"] = Tally(right, read.total(), words.total())
        case TextRegionsTruth(regions) if len(regions) > 1:
            found = []
            for region in regions:
                ious = [
                    quad_iou(given["quad"], region.quad_xy, image_size_wh)
                    for given in result["text_regions"]
                ]
                if ious and max(ious) >= _MIN_IOU:
                    found.append(int(np.argmax(ious)))
            is_in_order = all(first < second for first, second in pairwise(found))
            tallies["ocr_with_regions order", "exact"] = Tally(float(is_in_order), 1, 1)
        case DetectionsTruth() as truth if question.name == by_class:
            tallies |= _class_tallies(result["detections"], truth)
    return scorecard + Scorecard(tallies)


def _class_tallies(
    detections: Sequence[Mapping[str, Any]], truth: DetectionsTruth
) -> dict[tuple[str, Measure], Tally]:
    tallies: dict[tuple[str, Measure], Tally] = {}
    for label in {*(box.label for box in truth.boxes), *(each["label"] for each in detections)}:
        given = [each for each in detections if each["label"] == label]
        boxes = [box for box in truth.boxes if box.label == label]
        tallies[f"{_CLASS}{label}", "f1_at_50"] = match_boxes(given, boxes, _MIN_IOU)
    for box in truth.boxes:
        for each in detections:
            if each["label"] != box.label and box_iou(box.box_xyxy, each["box"]) >= _MIN_IOU:
                name = f"{_CONFUSED}{box.label} as {each['label']}"
                tallies[name, "exact"] = tallies.get((name, "exact"), Tally()) + Tally(1, 1, 1)
    return tallies


def thing_table(scorecards: Sequence[Scorecard]) -> str:
    """Return rows of tasks, then of classes from the worst, then of the commonest confusions."""
    rows = []
    classes = []
    confusions = []
    for name, measure in sorted(set(chain.from_iterable(card.tallies for card in scorecards))):
        if measure not in _SHOWN:
            continue
        tallies = [card.tally(name, measure) for card in scorecards]
        total = sum(tallies, Tally())
        if name.startswith(_CONFUSED):
            confusions.append((-total.num_right, [name, "times", f"{total.num_right:.0f}", ""]))
            continue
        low, high = interval(tallies)
        shown = f"{total.f1:.3f} [{low:.3f}, {high:.3f}]"
        row = [name, measure, shown, str(total.num_expected)]
        if name.startswith(_CLASS):
            classes.append((total.f1, row))
        else:
            rows.append(row)
    rows += [row for _, row in sorted(classes)]
    rows += [row for _, row in sorted(confusions)[:_NUM_CONFUSIONS]]
    return table(["question", "measure", "value", "expected"], rows)


def interval(tallies: Sequence[Tally]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of F1 over scenes."""
    counts = np.array(
        [(tally.num_right, tally.num_answered + tally.num_expected) for tally in tallies]
    )
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), _NUM_DRAWS)
    right, total = (weights @ counts).T
    is_asked = total > 0  # a rare class is in few scenes
    low, high = np.quantile(2 * right[is_asked] / total[is_asked], (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
