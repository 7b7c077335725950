"""The labels that one model, or two that agree, propose for an image, each with a confidence.

The confidence of a box or a text region is its score; of two models' box the lower score; of a text
of two models their similarity, 1 - normalized edit distance. A text of one model has none: it
counts as 1. The regions of two models are a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from diptych_client.annotate.consensus import Agreement, AgreementRule, agree, alone
from diptych_client.annotate.dataset_files import Box
from diptych_client.annotate.guarantee import Rule
from diptych_client.annotate.journal import Record
from diptych_client.results import TextRegion, TextRegionsResult, TextResult

NEVER = float("inf")  # a confidence that no label has


@dataclass(frozen=True, slots=True)
class Proposed:
    """A label and the confidence in it."""

    label: Box | str
    confidence: float


def has_text(record: Record) -> bool:
    return isinstance(record.answer.result, TextResult | TextRegionsResult)


def text_of(record: Record) -> str:
    """Return the text of an answer; regions are its lines."""
    match record.answer.result:
        case TextResult(text):
            return text
        case TextRegionsResult(regions):
            return "\n".join(region.text for region in regions)
    raise ValueError(f"{type(record.answer.result).__name__} has no text")


def regions_of(records: Sequence[Record]) -> tuple[TextRegion, ...] | None:
    """Return the text regions of one model; None for other labels, and those of two models."""
    result = records[0].answer.result
    is_alone = len(records) == 1
    return result.text_regions if is_alone and isinstance(result, TextRegionsResult) else None


def agreement(records: Sequence[Record], min_iou: float, min_score: float) -> Agreement:
    """Return the boxes of one model with at least a score, or those on which two models agree."""
    match records:
        case [record]:
            return alone(record, min_score)
        case [first, second]:
            return agree(first, second, AgreementRule(min_iou, min_score))
    raise ValueError(f"labels are proposed by one model or two, not {len(records)}")


def proposed(records: Sequence[Record], min_iou: float) -> tuple[Proposed, ...]:
    """Return the labels of an image that a rule may accept."""
    if not has_text(records[0]):
        found = agreement(records, min_iou, 0.0)
        return tuple(map(Proposed, found.accepted, found.confidences))
    if (regions := regions_of(records)) is not None:
        return tuple(Proposed(region.text, region.score) for region in regions)
    first, *others = map(text_of, records)
    similarities = [Levenshtein.normalized_similarity(first, other) for other in others]
    return (Proposed(first, min(similarities, default=1.0)),)


def min_confidence(proposals: Sequence[Proposed], rule: Rule) -> float:
    """Return the confidence from which a rule accepts labels of this image."""
    chosen = [each for each in proposals if each.confidence >= rule.min_confidence]
    return rule.min_confidence if len(chosen) <= rule.max_labels else NEVER
