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

from diptych_client.evaluation.dataset import TrueObject, TruePhrase
from diptych_client.evaluation.evaluator import RankedSample, judge_phrases
from diptych_client.evaluation.questions import (
    AnswerLog,
    ClassNames,
    ObjectsTruth,
    PhrasesTruth,
    Prediction,
    Sample,
    TextsTruth,
)
from diptych_client.geometry import BoxXyxy, Ring
from diptych_client.inputs import ImageStore
from diptych_client.matching import LabelledBox, match
from diptych_client.results import Instance, Item, TextRegion, box_of, label_of

_MAX_SIDE_PX = 400
_JPEG_QUALITY = 75


@dataclass(frozen=True, slots=True)
class Gallery:
    """The images and answers of the cards."""

    store: ImageStore
    log: AnswerLog
    names: ClassNames
    models: Sequence[str]

    def card(self, sample: Sample, ranked: RankedSample) -> dict[str, Any]:
        """Return one sample with the truth, if it has one, and the answer of each model."""
        panels = []
        predictions = []
        for model in self.models:
            prediction = self.log.prediction(sample, model)
            if prediction is not None:
                predictions.append(prediction)
                panels.append(self._answer_panel(model, sample, prediction))
        size = predictions[0].image
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
            "panels": [*self._truth_panel(sample, predictions), *panels],
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
                of_models = [self._kinds(objects, prediction)[0] for prediction in predictions]
                for index, true in enumerate(objects):
                    is_missed = any(kinds[index] == "missed" for kinds in of_models)
                    shapes.append(self._true_shape(true, true.label, is_missed))
            case PhrasesTruth(phrases):
                judged = [judge_phrases(sample.truth, prediction) for prediction in predictions]
                for index, phrase in enumerate(phrases):
                    is_missed = any(answers[index].item is None for answers in judged)
                    shapes.append(self._true_shape(phrase, phrase.phrase, is_missed))
            case None:
                return
        yield {"name": "truth", "shapes": shapes, "text": text}

    def _true_shape(
        self, true: TrueObject | TruePhrase, label: str, is_missed: bool
    ) -> dict[str, Any]:
        """Return a true object: as its box, too, where answers are no masks."""
        rings: list[Any] = [_corners(true.box_xyxy or (0.0, 0.0, 0.0, 0.0))]
        is_filled = False
        if self.log.task == "instance_segmentation" and isinstance(true.segmentation, list):
            rings = [np.reshape(ring, (-1, 2)) for ring in true.segmentation]
            is_filled = True
        kind = "missed" if is_missed else "truth"
        return {"label": label, "kind": kind, "rings": _rounded(rings), "is_filled": is_filled}

    def _answer_panel(self, model: str, sample: Sample, prediction: Prediction) -> dict[str, Any]:
        kinds: Sequence[str] = ["answer"] * len(prediction.items)
        if isinstance(sample.truth, ObjectsTruth):
            kinds = self._kinds(sample.truth.objects, prediction)[1]
        elif isinstance(sample.truth, PhrasesTruth):
            judged = judge_phrases(sample.truth, prediction)
            kind_of = {id(phrase.item): phrase.kind for phrase in judged}
            # the best answer to a phrase counts
            kinds = [kind_of.get(id(item), "answer") for item in prediction.items]
        shapes = []
        for item, kind in zip(prediction.items, kinds, strict=True):
            label = f"{label_of(item)} {item.score:.2f}"
            shapes.append({"label": label, "kind": kind, **_shape(item)})
        return {"name": model, "shapes": shapes, "text": prediction.text or ""}

    def _kinds(
        self, objects: Sequence[TrueObject], prediction: Prediction
    ) -> tuple[list[str], list[str]]:
        """Return the kind of each true object and of each answer."""
        truths = [LabelledBox(true.label, true.box_xyxy, true.is_crowd) for true in objects]
        answers = [LabelledBox(self.names.label(item), box_of(item)) for item in prediction.items]
        true_kinds: list[str] = ["ignored"] * len(truths)
        answer_kinds: list[str] = ["ignored"] * len(answers)
        for pair in match(truths, answers):
            if pair.truth is not None:
                true_kinds[pair.truth] = pair.kind
            if pair.answer is not None:
                answer_kinds[pair.answer] = pair.kind
        return true_kinds, answer_kinds


def thumbnail(data: bytes) -> str:
    """Return a small JPEG of the upright image as a data URL."""
    with Image.open(io.BytesIO(data)) as image:
        small = ImageOps.exif_transpose(image).convert("RGB")
    small.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"


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
