"""The gallery: each sample's image once, small, and its panels: the truth and every model's answer,
as JSON's values.

Shapes are drawn by page.js, in pixels of the original image.
"""

import io
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps

from diptych_client.evaluation.answers import AnswerLog, Prediction
from diptych_client.evaluation.dataset import ImageStore, TrueObject, TruePhrase
from diptych_client.evaluation.metrics.evaluator import Ranked
from diptych_client.evaluation.metrics.phrases import judge
from diptych_client.evaluation.questions import (
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Sample,
    TextsTruth,
)
from diptych_client.geometry import BoxXyxy
from diptych_client.matching import Kind, LabelledBox, match
from diptych_client.results import Instance, Item, TextRegion, box_of, label_of

_MAX_SIDE_PX = 400
_JPEG_QUALITY = 75


@dataclass(frozen=True, slots=True)
class Gallery:
    """Where images and answers of the cards come from."""

    store: ImageStore
    log: AnswerLog
    names: ClassNames
    models: Sequence[str]

    @property
    def has_masks(self) -> bool:
        """Return True if answers are masks: otherwise a true object is drawn as its box, too."""
        return self.log.task == "instance_segmentation"

    def card(self, sample: Sample, ranked: Ranked) -> dict[str, Any]:
        """Return one sample with the truth, if it has one, and the answer of each model."""
        predictions = {model: self.log.prediction(sample, model) for model in self.models}
        answered = {model: each for model, each in predictions.items() if each is not None}
        size = next(iter(answered.values())).image
        return {
            "title": sample.title,
            "image": thumbnail(self.store.read(sample.image)),
            "width": size.width,
            "height": size.height,
            "error": round(ranked.error, 3),
            "disagreement": round(ranked.disagreement, 3),
            "kinds": sorted(ranked.kinds),
            "classes": sorted(ranked.classes),
            "panels": [
                *_truth_panel(sample, list(answered.values()), self.names, self.has_masks),
                *(
                    _answer_panel(model, sample, each, self.names)
                    for model, each in answered.items()
                ),
            ],
        }


def gallery_cards(
    gallery: Gallery, samples: Sequence[Sample], ranked: Sequence[Ranked]
) -> Iterator[dict[str, Any]]:
    """Yield the cards in their order."""
    return (gallery.card(samples[each.sample_index], each) for each in ranked)


def thumbnail(data: bytes) -> str:
    """Return a small JPEG of the upright image as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _truth_panel(
    sample: Sample, predictions: Sequence[Prediction], names: ClassNames, has_masks: bool
) -> Iterator[dict[str, Any]]:
    match sample.truth:
        case TextsTruth(texts):
            yield {"name": "truth", "shapes": [], "text": "\n".join(dict.fromkeys(texts))}
        case ObjectsTruth(objects):
            missed = [_kinds(objects, each, names)[0] for each in predictions]
            by_all = [{kinds[i] for kinds in missed} for i in range(len(objects))]
            shapes = [
                _true_shape(each, each.label, "missed" if "missed" in kinds else "truth", has_masks)
                for each, kinds in zip(objects, by_all, strict=True)
            ]
            yield {"name": "truth", "shapes": shapes, "text": ""}
        case PhrasesTruth(phrases):
            judged = zip(*(judge(PhrasesTruth(phrases), each) for each in predictions), strict=True)
            shapes = [
                _true_shape(
                    each,
                    each.phrase,
                    "missed" if any(a.item is None for a in answers) else "truth",
                    has_masks,
                )
                for each, answers in zip(phrases, judged, strict=True)
            ]
            yield {"name": "truth", "shapes": shapes, "text": ""}


def _answer_panel(
    model: str, sample: Sample, prediction: Prediction, names: ClassNames
) -> dict[str, Any]:
    kinds: Sequence[str] = ["answer"] * len(prediction.items)
    if isinstance(sample.truth, ObjectsTruth):
        kinds = _kinds(sample.truth.objects, prediction, names)[1]
    elif isinstance(sample.truth, PhrasesTruth):
        kind_of = {id(each.item): each.kind for each in judge(sample.truth, prediction)}
        # the best answer to a phrase counts
        kinds = [kind_of.get(id(item), "answer") for item in prediction.items]
    shapes = [
        {"label": f"{label_of(item)} {item.score:.2f}", "kind": kind, **_shape(item)}
        for item, kind in zip(prediction.items, kinds, strict=True)
    ]
    return {"name": model, "shapes": shapes, "text": prediction.text or ""}


def _kinds(
    objects: Sequence[TrueObject], prediction: Prediction, names: ClassNames
) -> tuple[list[str], list[str]]:
    """Return the kind of each true object and of each answer."""
    truths = [LabelledBox(each.label, each.box_xyxy, each.is_crowd) for each in objects]
    answers = [LabelledBox(names.label(item), box_of(item)) for item in prediction.items]
    of_truths: list[str] = ["ignored"] * len(truths)
    of_answers: list[str] = ["ignored"] * len(answers)
    for pair in match(truths, answers):
        kind: Kind = pair.kind
        if pair.truth is not None:
            of_truths[pair.truth] = kind
        if pair.answer is not None:
            of_answers[pair.answer] = kind
    return of_truths, of_answers


def _true_shape(
    each: TrueObject | TruePhrase, label: str, kind: str, has_masks: bool
) -> dict[str, Any]:
    if has_masks and isinstance(each.segmentation, list):
        rings = [list(zip(ring[::2], ring[1::2], strict=True)) for ring in each.segmentation]
        return {"label": label, "kind": kind, "rings": _rounded(rings), "is_filled": True}
    box = each.box_xyxy or (0.0, 0.0, 0.0, 0.0)
    return {"label": label, "kind": kind, "rings": _rounded([_corners(box)]), "is_filled": False}


def _shape(item: Item) -> dict[str, Any]:
    if isinstance(item, Instance) and item.polygons_xy:
        return {"rings": _rounded(item.polygons_xy), "is_filled": True}
    rings = [item.quad_xy] if isinstance(item, TextRegion) else [_corners(item.box_xyxy)]
    return {"rings": _rounded(rings), "is_filled": False}


def _corners(box: BoxXyxy) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _rounded(rings: Sequence[Sequence[tuple[float, float]]]) -> list[list[list[float]]]:
    return [[[round(float(x), 1), round(float(y), 1)] for x, y in ring] for ring in rings]
