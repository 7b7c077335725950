"""The answers of every precision about the same pictures, compared with those of float32.

Each part is measured with the other in float32, and the default pair of a device together. Answers
are greedy and constrained, in batches, made by the runners' code and the service's prompts and
parsers. Parts are loaded one after another, so that only one is in memory.

Photographs decide about a released model. A model with a precision record knows rendered scenes
only: its answers about photographs are arbitrary, as many of their tokens nearly tie, so scenes
decide, and photographs are only measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from export.checkpoints.errors import ParityError
from export.checkpoints.jobs import ExportJob
from export.checks.answer_agreement import AnswerRun, GivenAnswer, Pair, agreement
from export.checks.half_arithmetic import HalfEncoder
from export.checks.pictures import (
    Picture,
    PictureKind,
    PictureQuestion,
    ask,
    load_photographs,
    make_scenes,
    spread,
)
from export.checks.streaming import load_for_checks
from runners.decoder.answers import AnswerText, to_request
from runners.decoder.batch import generate_each
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import GeneratedSequence, LiveSequence
from runners.encoder.session import VisionEncoder
from runners.tokens.errors import SequenceError
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.paligemma import MaskDecoder
from tasks.results import Result, TextResult
from wire.artifacts.devices import num_threads
from wire.artifacts.manifest import Manifest, Part, Precision, vision_encoder_file
from wire.runner_messages import SequenceSpec

# most answers are shorter; the rest of a page of text would add time rather than evidence
MAX_NEW_TOKENS = 48
NUM_SCENES = 12
# The cost of a prompt is its weights times its image tokens. The budget is that of florence-2-base
# (231e6 weights, 577 tokens) for a prompt about every other photograph that ships; a larger model
# has fewer, a smaller one up to two.
_PROMPT_BUDGET = 1.65e12
_MIN_PROMPTS = 8
# At florence-2-base's widths a core takes 7 s an image for a float16 encoder (half_arithmetic.py),
# and a float16 decoder takes four times as long as a float32 one: they see the first pictures of
# each kind only.
_NUM_HALF_ENCODED = 2
_NUM_HALF_DECODED = 2
_BATCH_SIZE = 16
_MAX_PROMPT_TOKENS = 80
_NO_TIMEOUT_S = 1e9
_ORIGINAL: Pair = ("float32", "float32")
_FAILED = GivenAnswer((), TextResult("", is_parsed=False))

Features = Mapping[int, Tensor]  # (N, C) by index of the picture


@dataclass(frozen=True, slots=True)
class AnswerRuns:
    """The runs of an export, and the kind of picture that decides about a default."""

    decided_by: PictureKind
    runs: tuple[AnswerRun, ...]

    @property
    def deciding(self) -> tuple[AnswerRun, ...]:
        """The runs that decide about a default."""
        return tuple(run for run in self.runs if run.pictures == self.decided_by)


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """The comparison of one export's precisions."""

    folder: Path  # artifacts
    entry: CatalogEntry
    hidden_size: int
    mask_decoder: MaskDecoder | None
    pictures: Sequence[Picture]
    questions: Sequence[PictureQuestion]
    is_large: bool = False

    @classmethod
    def of(
        cls, job: ExportJob, folder: Path, draft: Manifest, is_large: bool = False
    ) -> "AnswerCheck":
        """Choose the pictures and prompts by their cost.

        Raise `SourceError` for an unreadable image.
        """
        num_prompts = max(
            _MIN_PROMPTS, int(_PROMPT_BUDGET / (job.entry.parameters * draft.num_image_tokens))
        )
        files = (*spread(job.photographs, num_prompts), *job.own_images)
        scenes = tuple(make_scenes(NUM_SCENES if job.record else 0, draft))
        pictures = (*load_photographs(files, draft), *scenes)
        num_each: dict[PictureKind, int] = {
            "photographs": 2 if num_prompts >= 2 * len(job.photographs) and not scenes else 1,
            "scenes": 2,
        }
        num_fully_asked = _NUM_HALF_ENCODED if num_prompts > _MIN_PROMPTS else 0
        questions = ask(job.entry, pictures, num_each, num_fully_asked)
        mask_decoder = MaskDecoder.load(job.mask_decoder) if job.mask_decoder else None
        return cls(
            folder, job.entry, draft.hidden_size, mask_decoder, pictures, questions, is_large
        )

    def measure(self, precisions: Mapping[Part, Sequence[Precision]]) -> AnswerRuns:
        """Measure the artifacts' `precisions`; raise `ParityError` if float32 itself fails."""
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads(0, self.hidden_size, before))
        try:
            answers = self._answers(precisions)
        finally:
            torch.set_num_threads(before)
        kinds: set[PictureKind] = {picture.kind for picture in self.pictures}
        expected = answers.pop(_ORIGINAL, {})
        runs = list[AnswerRun]()
        for pair, of_pair in answers.items():
            runs += self._compare(pair, of_pair, expected)
        return AnswerRuns("scenes" if "scenes" in kinds else "photographs", tuple(runs))

    def _answers(
        self, precisions: Mapping[Part, Sequence[Precision]]
    ) -> dict[Pair, dict[int, GivenAnswer]]:
        """Return the answers of each pair of precisions, by question index."""
        answers: dict[Pair, dict[int, GivenAnswer]] = {}
        if not self.questions:
            return answers
        features = {each: self._encode(each) for each in ("float32", *precisions["encoder"])}
        defaults = {(parts["encoder"], parts["decoder"]) for parts in self.entry.precision.values()}
        for decoder in ("float32", *precisions["decoder"]):
            pairs = [(encoder, decoder) for encoder in features]
            measured = [pair for pair in pairs if "float32" in pair or pair in defaults]
            answers |= self._decode(decoder, {pair: features[pair[0]] for pair in measured})
        return answers

    def _encode(self, precision: Precision) -> Features:
        encoder: HalfEncoder | VisionEncoder
        if precision == "float16":
            encoder = HalfEncoder(self.folder / vision_encoder_file(precision))
        else:
            encoder = VisionEncoder(self.folder, precision=precision)
            encoder.load()
        return {
            index: torch.as_tensor(encoder.encode(np.asarray(picture.image)[None])[0])
            for index, picture in enumerate(self.pictures)
            if precision != "float16" or picture.rank < _NUM_HALF_ENCODED
        }

    def _decode(
        self, precision: Precision, features: Mapping[Pair, Features]
    ) -> dict[Pair, dict[int, GivenAnswer]]:
        """Return a decoder's answers to each pair's features, by question index."""
        any_features = next(iter(next(iter(features.values())).values()))
        max_positions = len(any_features) + _MAX_PROMPT_TOKENS + MAX_NEW_TOKENS
        decoder = load_for_checks(
            self.folder, self.entry.family, precision, self.is_large, max_positions
        )
        asked = []
        for pair, of_pictures in features.items():
            for index, question in enumerate(self.questions):
                is_seen = self.pictures[question.picture].rank < _NUM_HALF_DECODED
                if question.picture in of_pictures and (precision != "float16" or is_seen):
                    asked.append((pair, index))
        answers: dict[Pair, dict[int, GivenAnswer]] = {pair: {} for pair in features}
        for start in range(0, len(asked), _BATCH_SIZE):
            batch = asked[start : start + _BATCH_SIZE]
            questions = [self.questions[index] for _, index in batch]
            requests = [
                to_request(decoder, features[pair][question.picture], self._spec(question))
                for (pair, _), question in zip(batch, questions, strict=True)
            ]
            sequences = zip(batch, questions, generate_each(decoder, requests), strict=True)
            for (pair, index), question, sequence in sequences:
                answers[pair][index] = self._given(decoder, pair, question, sequence)
        return answers

    def _spec(self, question: PictureQuestion) -> SequenceSpec:
        return SequenceSpec(
            segments=[(segment.text, segment.is_control) for segment in question.prompt],
            max_new_tokens=MAX_NEW_TOKENS,
            num_beams=1,
            grammar=FAMILIES[self.entry.family].answer_grammar(
                question.task_id, question.parameters
            ),
            timeout_s=_NO_TIMEOUT_S,
        )

    def _given(
        self, decoder: Decoder, pair: Pair, question: PictureQuestion, ended: LiveSequence
    ) -> GivenAnswer:
        try:
            sequence = ended.result()
        except SequenceError as error:
            if pair == _ORIGINAL:
                raise ParityError(f"the decoder failed on a prompt: {error}") from error
            return _FAILED
        return GivenAnswer(sequence.token_ids, self._parse(decoder, question, sequence))

    def _parse(
        self, decoder: Decoder, question: PictureQuestion, sequence: GeneratedSequence
    ) -> Result:
        return FAMILIES[self.entry.family].parse_answer(
            question.task_id,
            question.parameters,
            [generated_text(decoder, sequence)],
            self.pictures[question.picture].original_size_wh,
            "polygon",
            self.mask_decoder,
        )

    def _compare(
        self, pair: Pair, answers: Mapping[int, GivenAnswer], expected: Mapping[int, GivenAnswer]
    ) -> Iterator[AnswerRun]:
        """Yield the run of each kind of picture."""
        for kind in dict.fromkeys(picture.kind for picture in self.pictures):
            of_kind = [
                index
                for index in answers
                if self.pictures[self.questions[index].picture].kind == kind
            ]
            yield AnswerRun(
                *pair,
                kind,
                len({self.questions[index].picture for index in of_kind}),
                agreement(
                    [answers[index] for index in of_kind], [expected[index] for index in of_kind]
                ),
            )


def generated_text(decoder: Decoder, sequence: GeneratedSequence) -> GeneratedText:
    """Return an answer as the parsers read it."""
    answer = AnswerText(decoder)
    answer.push(sequence.token_ids)
    pairs = zip(sequence.token_ids, sequence.logprobs, strict=True)
    logprobs = tuple(logprob for token_id, logprob in pairs if answer.has(token_id))
    return GeneratedText(answer.text, tuple(answer.token_ends), logprobs, sequence.finish_reason)
