"""The agreement of two precisions' answers: equal tokens, boxes and text, and the least that a
default must reach.

Knows no models: it compares token ids and typed results.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain
from statistics import fmean

from export.checks.pictures import PictureKind
from export.scenes.overlap import box_iou
from tasks.results import Detection, DetectionsResult, Instance, InstancesResult, Result, TextResult
from wire.artifacts.manifest import Device, Part, Precision

logger = logging.getLogger(__name__)

Pair = tuple[Precision, Precision]  # encoder and decoder

MIN_EQUAL_TOKENS = 0.9
MIN_MATCHED_BOXES = 0.9
MIN_BOX_IOU = 0.9
MAX_TEXT_DISTANCE = 0.1
MIN_CASES = 8  # prompts, boxes or texts; of fewer, a single difference would decide
MATCHED_IOU = 0.5  # boxes with the same label: the usual threshold of detection benchmarks


@dataclass(frozen=True, slots=True)
class GivenAnswer:
    """A model's answer to one prompt."""

    token_ids: tuple[int, ...]
    result: Result


@dataclass(frozen=True, slots=True)
class AnswerAgreement:
    """How far answers agree with those of float32; a measure without a case is perfect."""

    num_prompts: int
    # share of both sides' tokens that common subsequences cover, mean over prompts
    equal_tokens: float
    num_boxes: int  # float32's, in detection and segmentation
    matched_boxes: float  # share of both sides' boxes that have a partner with the same label
    box_iou: float  # mean, of matched boxes
    num_texts: int  # captioning and OCR
    text_distance: float  # Levenshtein distance per character of the longer text, mean


@dataclass(frozen=True, slots=True)
class AnswerRun:
    """The agreement of a pair of precisions with float32, on pictures of one kind."""

    encoder: Precision
    decoder: Precision
    pictures: PictureKind
    num_pictures: int
    agreement: AnswerAgreement

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """The measures below their thresholds, with value and threshold, as text."""
        measured = self.agreement
        checks = (
            ("equal tokens", measured.equal_tokens, MIN_EQUAL_TOKENS, measured.num_prompts),
            ("matched boxes", measured.matched_boxes, MIN_MATCHED_BOXES, measured.num_boxes),
            ("IoU of boxes", measured.box_iou, MIN_BOX_IOU, measured.num_boxes),
            ("equal text", 1 - measured.text_distance, 1 - MAX_TEXT_DISTANCE, measured.num_texts),
        )
        return tuple(
            f"{name} {value:.3f}, at least {least:.2f} required"
            for name, value, least, num_cases in checks
            if num_cases >= MIN_CASES and not value >= least
        )


def agreeing_defaults(
    entry_id: str, defaults: Mapping[Device, Mapping[Part, Precision]], runs: Sequence[AnswerRun]
) -> dict[Device, dict[Part, Precision]]:
    """Return the default precisions; replace those below a threshold by float32 and log them."""
    by_pair = {(run.encoder, run.decoder): run for run in runs}
    agreeing = {}
    for device, parts in defaults.items():
        place = f"{entry_id} on {device}"
        alone: dict[Part, Pair] = {
            "encoder": (parts["encoder"], "float32"),
            "decoder": ("float32", parts["decoder"]),
        }
        kept = dict(parts)
        for part, pair in alone.items():
            if pair in by_pair and by_pair[pair].shortfalls:
                _warn(place, f"the {parts[part]} {part}", by_pair[pair], part)
                kept[part] = "float32"
        together = by_pair.get((kept["encoder"], kept["decoder"]))
        if "float32" not in kept.values() and together and together.shortfalls:
            weaker = min(alone, key=lambda part: by_pair[alone[part]].agreement.equal_tokens)
            both = f"the {kept['encoder']} encoder with the {kept['decoder']} decoder"
            _warn(place, both, together, weaker)
            kept[weaker] = "float32"
        agreeing[device] = kept
    return agreeing


def _warn(place: str, precision: str, run: AnswerRun, part: Part) -> None:
    logger.warning(
        "%s: %s does not answer as float32 does: %s, on %d %s; the default of the %s is float32"
        " instead",
        place,
        precision,
        "; ".join(run.shortfalls),
        run.num_pictures,
        run.pictures,
        part,
    )


def agreement(answers: Sequence[GivenAnswer], expected: Sequence[GivenAnswer]) -> AnswerAgreement:
    """Compare the answers to the same prompts, one or more."""
    pairs = list(zip(answers, expected, strict=True))
    boxes = [(_boxes(one.result), _boxes(other.result)) for one, other in pairs]
    ious = list(chain.from_iterable(matched_ious(one, other) for one, other in boxes))
    num_boxes_of_both = sum(len(one) + len(other) for one, other in boxes)
    distances = [
        text_distance(one.result.text, other.result.text)
        for one, other in pairs
        if isinstance(one.result, TextResult) and isinstance(other.result, TextResult)
    ]
    return AnswerAgreement(
        num_prompts=len(pairs),
        equal_tokens=fmean(equal_share(one.token_ids, other.token_ids) for one, other in pairs),
        num_boxes=sum(len(other) for _, other in boxes),
        matched_boxes=2 * len(ious) / num_boxes_of_both if num_boxes_of_both else 1.0,
        box_iou=fmean(ious) if ious else 1.0,
        num_texts=len(distances),
        text_distance=fmean(distances) if distances else 0.0,
    )


def equal_share(first: Sequence[int], second: Sequence[int]) -> float:
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def matched_ious(
    first: Sequence[Detection | Instance], second: Sequence[Detection | Instance]
) -> list[float]:
    """Return the IoUs of pairs with one label, best first, from `MATCHED_IOU` up."""
    pairs = []
    for index, one in enumerate(first):
        for partner, other in enumerate(second):
            if one.label == other.label:
                pairs.append((box_iou(one.box, other.box), index, partner))
    ious = []
    used = set[int]()
    taken = set[int]()
    for iou, index, partner in sorted(pairs, reverse=True):
        if iou >= MATCHED_IOU and index not in used and partner not in taken:
            used.add(index)
            taken.add(partner)
            ious.append(iou)
    return ious


def text_distance(first: str, second: str) -> float:
    """Return the Levenshtein distance as a share of the longer text's characters."""
    distances = list(range(len(second) + 1))
    for row, one in enumerate(first, 1):
        diagonal, distances[0] = distances[0], row
        for column, other in enumerate(second, 1):
            best = min(distances[column] + 1, distances[column - 1] + 1, diagonal + (one != other))
            diagonal, distances[column] = distances[column], best
    return distances[-1] / (max(len(first), len(second)) or 1)


def _boxes(result: Result) -> Sequence[Detection | Instance]:
    match result:
        case DetectionsResult():
            return result.detections
        case InstancesResult():
            return result.instances
        case _:
            return ()
