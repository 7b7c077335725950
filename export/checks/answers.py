"""The answers of every precision about the same pictures, compared with those of float32.

Each part is measured with the other in float32, and the default pair of a device together. Answers
are greedy and constrained, in batches, made by the runners' code and the service's prompts and
parsers. Parts are loaded one after another, so that only one is in memory.

Photographs and documents ship in models/photographs; `--images FOLDER` adds the user's. A file is
named after its subject, the label of detection and the phrase of segmentation: `red-car.jpg` shows
a "red car". Photographs decide about a released model. A model with a precision record knows
rendered scenes only: its answers about photographs are arbitrary, as many of their tokens nearly
tie, so scenes decide, and photographs are only measured.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych_client.matching import greedy_pairs, pairwise_iou
from export.checkpoints.jobs import ExportJob
from export.checks.half_arithmetic import HalfEncoder
from export.checks.reference import load_for_checks
from export.errors import ParityError, SourceError
from export.scenes import render_scene, sample_scene
from imaging.errors import ImageError
from imaging.files import resize
from imaging.local_files import read_image
from runners.decoder.answers import AnswerText, to_request
from runners.decoder.batch import generate_each
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import GeneratedSequence, LiveSequence
from runners.encoder.session import VisionEncoder
from runners.errors import SequenceError
from tasks.catalog import CatalogEntry
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.paligemma import MaskDecoder
from tasks.parameters import TaskParameters, parse_parameters
from tasks.prompts import Prompt
from tasks.results import Detection, DetectionsResult, Instance, InstancesResult, Result, TextResult
from tasks.table import TASKS
from wire.artifacts.devices import num_threads
from wire.artifacts.manifest import Device, Manifest, Part, Precision, vision_encoder_file
from wire.runner_messages import SequenceSpec

PictureKind = Literal["photographs", "scenes"]
Parameters = Mapping[str, str | list[str]]

_FIRST_SCENE = 1000  # the seed; others than those of the probes
_SCENE_PX = 256
_ANY_SHAPE = "circle"  # the subject of a scene without objects


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, resized as the service does, with the name of its subject."""

    kind: PictureKind
    rank: int  # among the pictures of its kind
    subject: str
    image: Image.Image
    original_size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class PictureQuestion:
    """A task about a picture, as one prompt."""

    picture: int  # index
    task_id: str
    parameters: TaskParameters
    prompt: Prompt


def spread(files: Sequence[Path], max_files: int) -> tuple[Path, ...]:
    """Return at most `max_files`, evenly distributed over `files`."""
    count = min(max_files, len(files))
    return tuple(files[index * len(files) // count] for index in range(count))


def load_photographs(files: Sequence[Path], manifest: Manifest) -> Iterator[Picture]:
    """Yield the photographs; raise `SourceError` for a file that is not an image."""
    for rank, file in enumerate(files):
        try:
            image = read_image(file)
        except (OSError, ImageError) as error:
            raise SourceError(f"{file} cannot be read as an image: {error}") from error
        subject = file.stem.replace("-", " ")
        yield Picture("photographs", rank, subject, _resized(image, manifest), image.size)


def make_scenes(num_scenes: int, manifest: Manifest) -> Iterator[Picture]:
    """Yield rendered scenes, each with its first object as subject."""
    for rank in range(num_scenes):
        scene = sample_scene(_FIRST_SCENE + rank)
        image = render_scene(scene, _SCENE_PX)
        subject = scene.objects[0].name if scene.objects else _ANY_SHAPE
        yield Picture("scenes", rank, subject, _resized(image, manifest), image.size)


def ask(
    entry: CatalogEntry,
    pictures: Sequence[Picture],
    num_each: Mapping[PictureKind, int],
    num_fully_asked: int,
) -> tuple[PictureQuestion, ...]:
    """Return `num_each` questions per picture, in turns of tasks; all tasks for the first."""
    questions = []
    for index, picture in enumerate(pictures):
        # each kind of answer: a sentence, boxes, outlines, text in the image
        boxes: tuple[str, Parameters] = ("open_vocabulary_detection", {"labels": [picture.subject]})
        if "object_detection" in entry.task_ids:
            boxes = ("object_detection", {})
        outlines: tuple[str, Parameters] = ("instance_segmentation", {"phrase": picture.subject})
        wanted = [("captioning", {}), boxes, outlines, ("ocr", {})]
        tasks = [each for each in wanted if each[0] in entry.task_ids]
        num_asked = len(tasks)
        if picture.rank >= num_fully_asked:
            num_asked = min(num_each[picture.kind], num_asked)
        for turn in range(num_asked):
            task_id, values = tasks[(picture.rank + turn) % len(tasks)]
            parameters = parse_parameters(TASKS[task_id], values)
            (prompt,) = FAMILIES[entry.family].task_prompts(
                entry, task_id, parameters, picture.original_size_wh
            )
            questions.append(PictureQuestion(index, task_id, parameters, prompt))
    return tuple(questions)


def _resized(image: Image.Image, manifest: Manifest) -> Image.Image:
    return resize(image, manifest.image_size_wh, manifest.resample)


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
    ious = pairwise_iou([item.box for item in first], [item.box for item in second])
    labels = [np.array([item.label for item in items], dtype=object) for items in (first, second)]
    ious *= labels[0][:, None] == labels[1]
    return [float(ious[pair]) for pair in greedy_pairs(ious, MATCHED_IOU)]


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
                self.entry, question.task_id, question.parameters
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
            self.entry,
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
