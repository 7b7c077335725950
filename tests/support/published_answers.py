"""Answers that the released Florence-2 checkpoints write, after the forced start token.

Source: transformers@001f85b3, tests/models/florence2/test_modeling_florence2.py.
"""

from tasks.parameters import TaskParameters


def _text(*parts: str | int) -> str:
    return "".join(part if isinstance(part, str) else f"<loc_{part}>" for part in parts)


_START_AGAIN = "<s><s>"  # Florence-2-large
# fmt: off
_BASE_PROPOSALS = _text(
    0, 0, 998, 711, 0, 0, 419, 673, 0, 64, 364, 672, 764, 0, 998, 665, 525, 545, 921, 763, 163, 133,
    365, 423, 0, 65, 71, 658, 955, 148, 998, 661, 806, 675, 890, 759, 567, 678, 646, 761,
)
_LARGE_PROPOSALS = _text(
    _START_AGAIN, 0, 0, 999, 675, 0, 0, 362, 671, 0, 0, 306, 671, 763, 0, 999, 663, 524, 544, 921,
    762, 163, 132, 363, 422, 802, 674, 890, 758, 566, 677, 646, 760,
)
_WHEELS = _text(
    "wheels", 144, 570, 870, 778, "wheels", 711, 573, 866, 774, "wheels", 148, 579, 304, 774
)
_OBJECTS = _text(
    "car", 53, 333, 933, 774, "door handle", 425, 503, 474, 515,
    "wheel", 709, 576, 865, 772, 150, 584, 309, 773,
)
_BASE_POLYGON = _text(
    279, 379, 282, 379, 290, 372, 293, 372, 298, 368, 301, 368, 306, 364, 310, 362, 315, 360, 320,
    358, 324, 355, 331, 353, 337, 351, 343, 349, 349, 347, 356, 345, 365, 343, 376, 341, 390, 339,
    409, 337, 489, 337, 514, 339, 528, 341, 539, 343, 547, 345, 553, 347, 559, 349, 566, 351, 572,
    353, 578, 355, 584, 360, 589, 366, 592, 372, 595, 379, 598, 385, 601, 391, 603, 397, 606, 401,
    608, 408, 611, 414, 614, 420, 617, 426, 620, 433, 626, 441, 631, 445, 636, 447, 639, 451, 639,
    456, 642, 460,
)
_LARGE_POLYGON = _text(
    _START_AGAIN, 279, 377, 282, 375, 285, 375, 293, 368, 296, 368, 301, 364, 304, 364, 309, 360,
    313, 358, 318, 356, 323, 354, 328, 352, 334, 350, 340, 347, 346, 345, 353, 343, 360, 341, 370,
    339, 382, 337, 398, 335, 426, 333, 481, 333, 509, 335, 524, 337, 536, 339, 543, 341, 549, 343,
    556, 345, 562, 347, 568, 350, 575, 352, 579, 354, 585, 358, 588, 362, 592, 368, 595, 375, 598,
    381, 601, 387, 604, 393, 606, 399, 609, 404, 610, 410, 614, 416, 617, 422, 620, 429, 623, 435,
    629, 443, 634, 445,
)
_LARGE_WORDS = _text(
    _START_AGAIN, "中新中", 533, 68, 653, 68, 653, 128, 533, 128,
    "88", 1, 103, 19, 103, 19, 125, 1, 125, "DAT", 132, 186, 177, 188, 177, 214, 132, 213,
    "STOP", 177, 226, 345, 224, 345, 327, 177, 331, "KUO", 961, 371, 992, 371, 992, 397, 961, 397,
    "OPTUS", 120, 414, 192, 415, 192, 450, 120, 448,
    "OD COUKT", 438, 399, 486, 399, 486, 413, 438, 413, "yes", 21, 439, 64, 437, 65, 482, 21, 484,
    "88", 859, 435, 880, 435, 880, 460, 859, 460,
)
# fmt: on
_CAR = TaskParameters(labels=("car",))
_SEGMENTED_CAR = TaskParameters(phrase="a car")
# task, parameters, answer
PUBLISHED = [
    ("region_proposal", TaskParameters(), _BASE_PROPOSALS),
    ("region_proposal", TaskParameters(), _LARGE_PROPOSALS),
    ("open_vocabulary_detection", TaskParameters(labels=("wheels",)), _WHEELS),
    ("open_vocabulary_detection", _CAR, _text("car", 52, 334, 932, 774)),
    ("object_detection", TaskParameters(), _OBJECTS),
    ("instance_segmentation", _SEGMENTED_CAR, _BASE_POLYGON),
    ("instance_segmentation", _SEGMENTED_CAR, _LARGE_POLYGON),
    ("ocr_with_regions", TaskParameters(), _LARGE_WORDS),
]
