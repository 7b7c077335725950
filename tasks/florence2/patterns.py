"""The pattern of a well-formed answer of each task: the grammar (see `grammar`), as a decoder can hold to it."""

from tasks.answer_patterns import LOCATION, TEXT, OneToken, Pattern, at_least, in_order, one_of, optional, times
from tasks.parameters import TaskParameters

_LABEL = at_least(TEXT, 1)
_BOXES = at_least(times(LOCATION, 4), 1)
_QUAD = times(LOCATION, 8)
_POLYGON = at_least(times(LOCATION, 2), 3)  # of at least three points
_INSTANCE = in_order(_POLYGON, at_least(in_order(OneToken("<sep>"), _POLYGON), 0))
_MARKED_INSTANCES = at_least(in_order(OneToken("<poly>"), _INSTANCE, OneToken("</poly>")), 1)
_LABELLED_BOXES = at_least(in_order(_LABEL, _BOXES), 0)

_PATTERNS: dict[str, Pattern] = {
    "object_detection": _LABELLED_BOXES,
    "open_vocabulary_detection": at_least(in_order(_LABEL, one_of(_BOXES, _MARKED_INSTANCES)), 0),
    "phrase_grounding": _LABELLED_BOXES,
    "region_proposal": optional(_BOXES),
    "dense_region_captioning": _LABELLED_BOXES,
    "instance_segmentation": optional(in_order(at_least(TEXT, 0), one_of(_INSTANCE, _MARKED_INSTANCES))),
    "ocr_with_regions": at_least(in_order(_LABEL, _QUAD), 0),
    "region_description": in_order(at_least(TEXT, 0), optional(_BOXES)),
}


def answer_pattern(task_id: str, parameters: TaskParameters) -> Pattern | None:  # noqa: ARG001  # as in PaliGemma
    """Return the pattern of the answer to each prompt of a task, None where any text is well formed."""
    return _PATTERNS.get(task_id)
