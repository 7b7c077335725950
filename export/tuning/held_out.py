"""Answers about held-out images, parsed as the service parses them, and their F1.

Boxes count as detected at an IoU of 0.5 with the same label; words of a text, wherever they stand.
The expected answer is parsed too, so that both have the precision of location tokens.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from export.checks.answers import matched_ious
from export.tuning.batches import Batches
from export.tuning.examples import Example
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.parsing import GeneratedText
from tasks.prompts import Prompt
from tasks.results import DetectionsResult, Result, TextResult

MAX_ANSWERED = 100  # prompts in each epoch; an epoch of a large dataset would wait for all of them
NUM_SAMPLES = 3
_ROOM = 2  # tokens allowed per token of the longest expected answer
_NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class SampleAnswer:
    """An example answer, for people."""

    prompt: str
    expected: str
    answer: str


@dataclass(frozen=True, slots=True)
class HeldOutScore:
    """F1 with its 95 % interval over resampled images, and a few of the answers."""

    f1: float
    low: float
    high: float
    num_images: int
    samples: tuple[SampleAnswer, ...]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The held-out prompts that are answered after every epoch."""

    entry: CatalogEntry
    task_id: str
    batches: Batches
    examples: Sequence[Example]

    def score(self, batch_size: int) -> HeldOutScore:
        """Answer the first prompts with the model as it is now."""
        examples = self.examples[:MAX_ANSWERED]
        answers = self._answers(examples, batch_size)
        counts = defaultdict[Path, list[tuple[int, int]]](list)
        samples = []
        for example, answer in zip(examples, answers, strict=True):
            counts[example.image].append(count(self.entry, self.task_id, example, answer))
            samples.append(SampleAnswer(plain(example.prompt), plain(example.answer), answer))
        samples = samples[:: max(1, len(samples) // NUM_SAMPLES)][:NUM_SAMPLES]
        by_image = np.array([np.sum(of_image, axis=0) for of_image in counts.values()])
        return pooled(by_image, samples)

    def _answers(self, examples: Sequence[Example], batch_size: int) -> list[str]:
        """Return the texts in order; prompts of one length are answered together, unpadded."""
        rows = [self.batches.tokenized(example) for example in examples]
        max_new_tokens = _ROOM * max(len(row.answer_ids) for row in rows)

        def length(index: int) -> int:
            return len(rows[index].prompt_ids)

        texts = dict[int, str]()
        for _, group in groupby(sorted(range(len(rows)), key=length), key=length):
            same_length = list(group)
            for start in range(0, len(same_length), batch_size):
                indices = same_length[start : start + batch_size]
                batch = [rows[index] for index in indices]
                texts |= zip(indices, self.batches.answers(batch, max_new_tokens), strict=True)
        return [texts[index] for index in range(len(rows))]


def count(entry: CatalogEntry, task_id: str, example: Example, answer: str) -> tuple[int, int]:
    """Return the number of boxes or words that are right, and that of both sides."""

    def parsed(text: str) -> Result:
        generated = GeneratedText(text, (len(text),), (0.0,), "stop")
        return FAMILIES[entry.family].parse_answer(
            entry, task_id, example.parameters, [generated], example.size_wh, "polygon", None
        )

    match parsed(answer), parsed(plain(example.answer)):
        case DetectionsResult(detections), DetectionsResult(expected):
            return len(matched_ious(detections, expected)), len(detections) + len(expected)
        case TextResult(text), TextResult(expected_text):
            words = Counter(text.split())
            expected_words = Counter(expected_text.split())
            return (words & expected_words).total(), (words + expected_words).total()
        case results:
            raise AssertionError(f"no tuned task has results {results}")


def pooled(counts: NDArray[np.int_], samples: Sequence[SampleAnswer]) -> HeldOutScore:
    """Pool the counts (images, 2); the interval is a percentile bootstrap over images."""
    num_images = len(counts)
    draws = np.random.default_rng(0).integers(num_images, size=(_NUM_RESAMPLES, num_images))
    sums = np.concatenate([counts.sum(axis=0)[None], counts[draws].sum(axis=1)])
    right, total = sums.T
    f1 = np.where(total > 0, 2 * right / np.maximum(total, 1), 1.0)
    low, high = np.quantile(f1[1:], (0.025, 0.975)).tolist()
    return HeldOutScore(float(f1[0]), low, high, num_images, tuple(samples))


def plain(segments: Prompt) -> str:
    return "".join(segment.text for segment in segments)
