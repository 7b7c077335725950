"""Training examples: a prompt and its true answer as token ids, each token with the cells that it
mentions.

Shapes: T answer tokens, N cells of the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from tokenizers import Tokenizer

from export.scenes import Question, Scene, question_prompts, questions
from export.scenes.truth import InstancesTruth
from laboratory.training.data.cell_targets import NUM_CELLS, CellTargets
from laboratory.training.data.mentions import Piece, ranked_subjects, segmented_subject
from runners.tokens.tokenizer import PromptTokenizer, Segments
from tasks.catalog import CatalogEntry
from tasks.prompts import Prompt

_OTHER_WEIGHT = 0.5  # questions that are not in a recipe


class AnswerWriter(Protocol):
    """Writes the true answer to a question in a family's format."""

    def __call__(self, scene: Scene, question: Question, labels: Sequence[str]) -> list[Piece]:
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
    scene: Scene,
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
    for question in questions(scene):
        prompts = question_prompts(language.entry, question)
        for prompt in prompts:
            offered.append((question, prompt))
            weight_of.append(_weight(scene, question, weights) / len(prompts))
    shares = np.array(weight_of)
    drawn = rng.choice(len(offered), min(num, len(offered)), replace=False, p=shares / shares.sum())
    examples = []
    for index in drawn:
        question, prompt = offered[index]
        examples.append(
            make_example(language, scene, targets, question, prompt.segments, prompt.labels)
        )
    return examples


def _weight(scene: Scene, question: Question, weights: Mapping[str, float]) -> float:
    weight = weights.get(question.name, _OTHER_WEIGHT)
    if not isinstance(question.truth, InstancesTruth):
        return weight
    return weights.get(
        f"{question.name} {scene.objects[segmented_subject(scene, question)].shape}", weight
    )


def make_example(
    language: Language,
    scene: Scene,
    targets: CellTargets,
    question: Question,
    segments: Prompt,
    labels: Sequence[str],
) -> Example:
    """Return the example of one prompt."""
    pieces = [piece for piece in language.write_answer(scene, question, labels) if piece.text]
    encoding = language.tokenizer.encode(
        "".join(piece.text for piece in pieces), add_special_tokens=False
    )
    owners = _owners(pieces, [end for _, end in encoding.offsets])
    before = len(language.answer_start)
    after = len(language.answer_end)
    tokens: list[Piece | None] = (
        [None] * before + [pieces[owner] for owner in owners] + [None] * after
    )
    return Example(
        language.prompt_ids([(s.text, s.is_control) for s in segments]),
        np.array([*language.answer_start, *encoding.ids, *language.answer_end]),
        np.stack([_mentioned(piece, targets) for piece in tokens]),
        np.array([_coordinate(piece) for piece in tokens]),
        np.array([(piece and piece.position) or 0.0 for piece in tokens], np.float32),
        np.array([piece.step if piece else 0 for piece in tokens]),
        np.array(_places(tokens)),
        _ranks(ranked_subjects(scene, question, pieces), targets),
    )


def _owners(pieces: Sequence[Piece], token_ends: Sequence[int]) -> list[int]:
    """Return the index of the piece that contains each token's last character."""
    ends = np.cumsum([len(piece.text) for piece in pieces])
    return np.searchsorted(ends, token_ends).tolist() if pieces else []


def _mentioned(piece: Piece | None, targets: CellTargets) -> NDArray[np.bool_]:
    if piece is None or piece.mention is None:
        return np.zeros(NUM_CELLS, bool)
    return targets.mentioned(piece.mention)


def _coordinate(piece: Piece | None) -> int:
    mention = piece.mention if piece else None
    return -1 if mention is None or mention.coordinate is None else mention.coordinate


def _places(pieces: Sequence[Piece | None]) -> list[int]:
    places: list[int] = []
    for piece in pieces:
        before = places[-1] if places else -1
        places.append(before + 1 if piece and piece.step else -1)
    return places


def _ranks(subjects: Sequence[int], targets: CellTargets) -> NDArray[np.int64]:
    ranks = np.zeros(NUM_CELLS, np.int64)
    for rank, subject in enumerate(subjects, start=1):
        ranks[targets.subject == subject] = rank
    return ranks
