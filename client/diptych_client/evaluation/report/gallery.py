"""The gallery: each image once, small, with the truth and every model's answer, as JSON's values.

Shapes are drawn by page.js, in pixels of the original image.
"""

import io
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diptych_client.evaluation.answer_log import AnswerLog, Prediction
from diptych_client.evaluation.dataset import TrueObject, TruePhrase
from diptych_client.evaluation.metrics.evaluator import Ranked
from diptych_client.evaluation.metrics.phrases import judge
from diptych_client.evaluation.questionnaire import (
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Sample,
    TextsTruth,
)
from diptych_client.geometry import BoxXyxy, Ring
from diptych_client.inputs.files import ImageStore
from diptych_client.matching import LabelledBox, match
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
        panels = []
        answered = []
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            if prediction is not None:
                answered.append(prediction)
                panels.append(self._answer_panel(model, sample, prediction))
        size = answered[0].image
        return {
            "title": sample.title,
            "image": thumbnail(self.store.read(sample.image)),
            "width": size.width,
            "height": size.height,
            "error": round(ranked.error, 3),
            "disagreement": round(ranked.disagreement, 3),
            "difference": round(ranked.difference, 3),
            "kinds": sorted(ranked.kinds),
            "classes": sorted(ranked.classes),
            "panels": [*self._truth_panel(sample, answered), *panels],
        }

    def _truth_panel(
        self, sample: Sample, predictions: Sequence[Prediction]
    ) -> Iterator[dict[str, Any]]:
        shapes = []
        text = ""
        match sample.truth:
            case TextsTruth(texts):
                text = "\n".join(dict.fromkeys(texts))
            case ObjectsTruth(objects):
                of_models = [_kinds(objects, each, self.names)[0] for each in predictions]
                for true, kinds in zip(objects, zip(*of_models, strict=True), strict=True):
                    kind = "missed" if "missed" in kinds else "truth"
                    shapes.append(self._true_shape(true, true.label, kind))
            case PhrasesTruth(phrases):
                judged = [judge(sample.truth, each) for each in predictions]
                for phrase, answers in zip(phrases, zip(*judged, strict=True), strict=True):
                    kind = "missed" if any(each.item is None for each in answers) else "truth"
                    shapes.append(self._true_shape(phrase, phrase.phrase, kind))
            case None:
                return
        yield {"name": "truth", "shapes": shapes, "text": text}

    def _true_shape(self, true: TrueObject | TruePhrase, label: str, kind: str) -> dict[str, Any]:
        rings: list[Any]
        if has_masks := self.has_masks and isinstance(true.segmentation, list):
            rings = [np.reshape(ring, (-1, 2)) for ring in true.segmentation]
        else:
            rings = [_corners(true.box_xyxy or (0.0, 0.0, 0.0, 0.0))]
        return {"label": label, "kind": kind, "rings": _rounded(rings), "is_filled": has_masks}

    def _answer_panel(self, model: str, sample: Sample, prediction: Prediction) -> dict[str, Any]:
        kinds: Sequence[str] = ["answer"] * len(prediction.items)
        if isinstance(sample.truth, ObjectsTruth):
            kinds = _kinds(sample.truth.objects, prediction, self.names)[1]
        elif isinstance(sample.truth, PhrasesTruth):
            kind_of = {id(each.item): each.kind for each in judge(sample.truth, prediction)}
            # the best answer to a phrase counts
            kinds = [kind_of.get(id(item), "answer") for item in prediction.items]
        shapes = [
            {"label": f"{label_of(item)} {item.score:.2f}", "kind": kind, **_shape(item)}
            for item, kind in zip(prediction.items, kinds, strict=True)
        ]
        return {"name": model, "shapes": shapes, "text": prediction.text or ""}


def thumbnail(data: bytes) -> str:
    """Return a small JPEG of the upright image as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


def _kinds(
    objects: Sequence[TrueObject], prediction: Prediction, names: ClassNames
) -> tuple[list[str], list[str]]:
    """Return the kind of each true object and of each answer."""
    truths = [LabelledBox(each.label, each.box_xyxy, each.is_crowd) for each in objects]
    answers = [LabelledBox(names.label(item), box_of(item)) for item in prediction.items]
    of_truths: list[str] = ["ignored"] * len(truths)
    of_answers: list[str] = ["ignored"] * len(answers)
    for pair in match(truths, answers):
        if pair.truth is not None:
            of_truths[pair.truth] = pair.kind
        if pair.answer is not None:
            of_answers[pair.answer] = pair.kind
    return of_truths, of_answers


def _shape(item: Item) -> dict[str, Any]:
    if isinstance(item, Instance) and item.polygons_xy:
        return {"rings": _rounded(item.polygons_xy), "is_filled": True}
    ring = item.quad_xy if isinstance(item, TextRegion) else _corners(item.box_xyxy)
    return {"rings": _rounded([ring]), "is_filled": False}


def _corners(box: BoxXyxy) -> Ring:
    x1, y1, x2, y2 = box
    return ((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _rounded(rings: Iterable[Any]) -> list[list[list[float]]]:
    return [np.round(np.array(ring, dtype=float), 1).tolist() for ring in rings]
