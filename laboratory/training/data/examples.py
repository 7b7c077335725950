"""Training examples: a prompt and its true answer as token ids, each token with the cells that it
mentions.

Shapes: T answer tokens, N cells of the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tokenizers import Tokenizer

from laboratory.questions import InstancesTruth, question_prompts
from laboratory.training.data.cell_targets import CellTargets
from laboratory.training.data.mentions import Piece, ranked_subjects
from laboratory.training.data.pictures import Picture, SpannedQuestion
from runners.tokens.text import PromptTokenizer, Segments
from tasks.catalog import CatalogEntry
from tasks.prompts import Prompt

_OTHER_WEIGHT = 0.5  # questions that are not in a recipe


class AnswerWriter(Protocol):
    """Writes the true answer to a question in a family's format."""

    def __call__(
        self, picture: Picture, asked: SpannedQuestion, labels: Sequence[str]
    ) -> list[Piece]:
        """Return the answer to a question, or to its prompt with these `labels`."""
        ...


@dataclass(frozen=True, slots=True)
class Language:
    """The vocabulary and the prompt and answer formats of a family."""

    entry: CatalogEntry
    tokenizer: Tokenizer
    prompt_tokenizer: PromptTokenizer
    prompt_start: tuple[int, ...]  # ids before and after a prompt
    prompt_end: tuple[int, ...]
    answer_start: tuple[int, ...]  # ids before and after an answer
    answer_end: tuple[int, ...]
    write_answer: AnswerWriter

    def prompt_ids(self, segments: Segments) -> tuple[int, ...]:
        """Return the ids of a prompt with its start and end."""
        return (*self.prompt_start, *self.prompt_tokenizer.encode(segments), *self.prompt_end)


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt about an image and its answer."""

    prompt_ids: tuple[int, ...]
    answer_ids: NDArray[np.int64]  # (T,)
    mentioned: NDArray[np.bool_]  # (T, N) the cells that a token mentions; none for most words
    coordinates: NDArray[np.int64]  # (T,) index of the coordinate in its box, -1 for none
    positions: NDArray[np.float32]  # (T,) of a location in bins, before rounding
    steps: NDArray[np.int64]  # (T,) of the grid that the position is rounded to, 0 for other tokens
    places: NDArray[np.int64]  # (T,) index in a run of locations, -1 for other tokens
    ranks: NDArray[np.int64]  # (N,) 0: not in the answer; 1, 2, …: its first, second, … subject


def make_examples(
    language: Language,
    picture: Picture,
    targets: CellTargets,
    weights: Mapping[str, float],
    num: int,
    rng: Generator,
) -> list[Example]:
    """Return up to `num` examples of different prompts, sampled by their questions' weights.

    A weight may be that of a segmentation question with a shape (`instance_segmentation phrase
    star`).
    """
    offered = []
    weight_of = []
    for asked in picture.asked:
        question = asked.question
        weight = weights.get(question.name, _OTHER_WEIGHT)
        if isinstance(question.truth, InstancesTruth):
            shape = picture.parts[picture.segmented_subject(question)].name.split()[-1]
            weight = weights.get(f"{question.name} {shape}", weight)
        prompts = question_prompts(language.entry, question)
        for prompt in prompts:
            offered.append((asked, prompt))
            weight_of.append(weight / len(prompts))
    shares = np.array(weight_of)
    drawn = rng.choice(len(offered), min(num, len(offered)), replace=False, p=shares / shares.sum())
    examples = []
    for index in drawn:
        asked, prompt = offered[index]
        examples.append(
            make_example(language, picture, targets, asked, prompt.segments, prompt.labels)
        )
    return examples


def make_example(
    language: Language,
    picture: Picture,
    targets: CellTargets,
    asked: SpannedQuestion,
    segments: Prompt,
    labels: Sequence[str],
) -> Example:
    """Return the example of one prompt."""
    pieces = [piece for piece in language.write_answer(picture, asked, labels) if piece.text]
    encoding = language.tokenizer.encode(
        "".join(piece.text for piece in pieces), add_special_tokens=False
    )
    # the piece that contains each token's last character
    ends = np.cumsum([len(piece.text) for piece in pieces])
    owners = np.searchsorted(ends, [end for _, end in encoding.offsets]) if pieces else ()
    before: list[Piece | None] = [None] * len(language.answer_start)
    tokens = [*before, *(pieces[owner] for owner in owners), *[None] * len(language.answer_end)]
    ranks = np.zeros(len(targets.subject), np.int64)
    for rank, subject in enumerate(ranked_subjects(picture, asked, pieces), start=1):
        ranks[targets.subject == subject] = rank
    return Example(
        language.prompt_ids([(s.text, s.is_control) for s in segments]),
        np.array([*language.answer_start, *encoding.ids, *language.answer_end]),
        ranks=ranks,
        **token_targets(tokens, targets),
    )


def token_targets(tokens: Sequence[Piece | None], targets: CellTargets) -> dict[str, NDArray[Any]]:
    """Return the fields of an `Example` with a row for each token."""
    num = len(tokens)
    mentioned = np.zeros((num, len(targets.subject)), bool)
    coordinates = np.full(num, -1)
    positions = np.zeros(num, np.float32)
    steps = np.zeros(num, np.int64)
    places = np.full(num, -1)
    for index, piece in enumerate(tokens):
        if piece is None:
            continue
        if (mention := piece.mention) is not None:
            mentioned[index] = targets.mentioned(mention)
            coordinates[index] = -1 if mention.coordinate is None else mention.coordinate
        positions[index] = piece.position or 0.0
        steps[index] = piece.step
        if piece.step:
            places[index] = places[index - 1] + 1 if index else 0
    return {
        "mentioned": mentioned,
        "coordinates": coordinates,
        "positions": positions,
        "steps": steps,
        "places": places,
    }
