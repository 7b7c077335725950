"""The classes of a dataset: the labels that the answers hold, in an order that does not depend on who came first."""

from collections.abc import Sequence

from client.annotate.journal import Record
from client.results import Detection, DetectionsResult, Instance, InstancesResult, Result

UNNAMED = "object"  # of boxes to which the task gives no label

Box = Detection | Instance


def boxes_of(result: Result) -> tuple[Box, ...]:
    """Return the boxes of a result, with or without masks."""
    match result:
        case DetectionsResult(boxes) | InstancesResult(boxes):
            return boxes
    raise ValueError("texts have no boxes")


def class_name(box: Box) -> str:
    """Return the class of a box."""
    return box.label or UNNAMED


def class_indices(records: Sequence[Record], asked_labels: Sequence[str]) -> dict[str, int]:
    """Return the index of every class: asked labels in their order, then the others by name."""
    answered = sorted({class_name(box) for record in records for box in boxes_of(record.answer.result)})
    return {name: index for index, name in enumerate(dict.fromkeys([*asked_labels, *answered]))}
