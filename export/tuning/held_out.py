"""Answers about held-out images, parsed as the service parses them, and their F1.

Boxes count as found at an IoU of 0.5 with the same label; words of a text, wherever they stand.
The expected answer is parsed too, so that both have the precision of location tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from export.scenes.scoring import Tally, match_boxes
from export.scenes.truth import LabelledBox
from export.tuning.batches import Batches, TokenizedExample
from export.tuning.examples import Example
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.prompts import Prompt
from tasks.results import DetectionsResult, Result, TextResult

MAX_ANSWERED = 100  # prompts in each epoch; an epoch of a large dataset would wait for all of them
NUM_SHOWN = 3
MIN_IOU = 0.5
_ROOM = 2  # tokens allowed per token of the longest expected answer
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An example answer, for people."""

    prompt: str
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """F1 with its 95 % interval over resampled images, and a few of the answers."""

    f1: float
    low: float
    high: float
    num_images: int
    shown: tuple[ShownAnswer, ...]


class HeldOut:
    """The held-out prompts that are answered after every epoch."""

    def __init__(
        self, entry: CatalogEntry, task_id: str, batches: Batches, examples: Sequence[Example]
    ) -> None:
        self._entry = entry
        self._task_id = task_id
        self._batches = batches
        self._examples = examples[:MAX_ANSWERED]

    def score(self, batch_size: int) -> HeldOutScore:
        """Answer the prompts with the model as it is now."""
        got = self._answers(batch_size)
        by_image = defaultdict[Path, Tally](Tally)
        shown = []
        for example, text in zip(self._examples, got, strict=True):
            by_image[example.image] += answer_tally(self._entry, self._task_id, example, text)
            shown.append(ShownAnswer(plain(example.prompt), plain(example.answer), text))
        some = shown[:: max(1, len(shown) // NUM_SHOWN)][:NUM_SHOWN]
        return scored(list(by_image.values()), some)

    def _answers(self, batch_size: int) -> list[str]:
        """Return the texts in order; prompts of one length are answered together, unpadded."""
        rows = [self._batches.tokenized(example) for example in self._examples]
        max_new_tokens = _ROOM * max(len(row.answer_ids) for row in rows)

        def length(index: int) -> int:
            return len(rows[index].prompt_ids)

        texts = dict[int, str]()
        for _, group in groupby(sorted(range(len(rows)), key=length), key=length):
            indices = list(group)
            for start in range(0, len(indices), batch_size):
                some = indices[start : start + batch_size]
                batch: list[TokenizedExample] = [rows[index] for index in some]
                texts |= zip(some, self._batches.answers(batch, max_new_tokens), strict=True)
        return [texts[index] for index in range(len(rows))]


def answer_tally(entry: CatalogEntry, task_id: str, example: Example, text: str) -> Tally:
    """Return the boxes or words that an answer has right."""

    def parsed(answer: str) -> Result:
        generated = GeneratedText(answer, (len(answer),), (0.0,), "stop")
        return FAMILIES[entry.family].parse_answer(
            entry, task_id, example.parameters, [generated], example.size_wh, "polygon", None
        )

    match parsed(text), parsed(plain(example.answer)):
        case DetectionsResult(found), DetectionsResult(true):
            boxes = [LabelledBox(each.label, each.box) for each in true]
            answered = [
                {"label": each.label, "box": each.box, "score": each.score} for each in found
            ]
            return match_boxes(answered, boxes, MIN_IOU)
        case TextResult(given), TextResult(expected):
            words = Counter(given.split())
            true_words = Counter(expected.split())
            return Tally((words & true_words).total(), words.total(), true_words.total())
        case results:
            raise AssertionError(f"no tuned task has results {results}")


def scored(by_image: Sequence[Tally], shown: Sequence[ShownAnswer]) -> HeldOutScore:
    """Pool the tallies of all images; the interval is a percentile bootstrap over images."""
    right = np.array([each.num_right for each in by_image])
    total = np.array([each.num_answered + each.num_expected for each in by_image])
    size = (_NUM_RESAMPLES, len(by_image))
    drawn = np.random.default_rng(0).integers(len(by_image), size=size)
    totals = total[drawn].sum(axis=1)
    f1 = np.where(totals > 0, 2 * right[drawn].sum(axis=1) / np.maximum(totals, 1), 1.0)
    low, high = np.quantile(f1, (0.025, 0.975)).tolist()
    return HeldOutScore(sum(by_image, Tally()).f1, low, high, len(by_image), tuple(shown))


def plain(segments: Prompt) -> str:
    return "".join(segment.text for segment in segments)
