"""The answers of every precision about the same pictures, compared with those of float32.

Each part is measured with the other in float32, and the default pair of a device together. A
default that differs too much becomes float32. Answers are greedy and constrained, in batches. Parts
are loaded one after another, so that only one is in memory.

Photographs and documents ship in models/photographs; `--images FOLDER` adds the user's. A file is
named after its subject, the label of detection and the phrase of segmentation: `red-car.jpg` shows
a "red car". A model that knows rendered scenes only answers about scenes instead: many tokens of
its answers about photographs nearly tie.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from statistics import fmean
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from diptych_client.tools.matching import greedy_pairs, pairwise_iou
from export.checkpoints.jobs import ExportJob
from export.checks.asking import Question
from export.checks.encoding import encode
from export.checks.reference import load_for_checks
from export.errors import ParityError, SourceError
from export.scenes import render_scene, sample_scene
from imaging.containers import ImageError
from imaging.files import read_image, resize
from runners.decoder.batch import generate_each
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import GeneratedSequence
from runners.errors import SequenceError
from tasks.catalog import CatalogEntry
from tasks.paligemma import MaskDecoder
from tasks.results import Detection, DetectionsResult, Instance, InstancesResult, Result, TextResult
from wire.artifacts.devices import num_threads
from wire.artifacts.manifest import Device, Manifest, Part, Precision

logger = logging.getLogger(__name__)

PictureKind = Literal["photographs", "scenes"]
Pair = tuple[Precision, Precision]  # encoder and decoder
Features = Mapping["Picture", Tensor]  # (N, C)
Objects = Sequence[Detection | Instance]

MIN_EQUAL_TOKENS = 0.9
MIN_MATCHED_BOXES = 0.9
MIN_BOX_IOU = 0.9
MAX_TEXT_DISTANCE = 0.1
MIN_CASES = 8  # prompts, boxes or texts; of fewer, a single difference would decide
MATCHED_IOU = 0.5  # boxes with the same label: the usual threshold of detection benchmarks
# most answers are shorter; the rest of a page of text would add time rather than evidence
MAX_NEW_TOKENS = 48
_NUM_SCENES = 12
_FIRST_SCENE = 1000  # the seed; others than those of the probes
_SCENE_PX = 256
# The cost of a prompt is its weights times its image tokens. The budget is that of florence-2-base
# (231e6 weights, 577 tokens) for a prompt about every other photograph that ships; a larger model
# has fewer, a smaller one up to two.
_PROMPT_BUDGET = 1.65e12
_MIN_PROMPTS = 8
# In float16 an encoder takes seconds an image at real widths (encoding.py), and a decoder
# takes four times as long as in float32: they see the first pictures only.
_NUM_HALF_PICTURES = 2
_BATCH_SIZE = 16
_MAX_PROMPT_TOKENS = 80
_ORIGINAL: Pair = ("float32", "float32")


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """An image, resized as the service does, with the name of its subject."""

    subject: str
    image: Image.Image
    original_size_wh: tuple[int, int]


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """A model's answer to one prompt."""

    token_ids: tuple[int, ...]
    result: Result


_FAILED = ModelAnswer((), TextResult("", is_parsed=False))
Answers = dict[int, ModelAnswer]  # by index of the question


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
    """The agreement of a pair of precisions with float32."""

    encoder: Precision
    decoder: Precision
    pictures: PictureKind
    num_pictures: int
    agreement: AnswerAgreement

    @property
    def shortfalls(self) -> list[str]:
        """The measures below their thresholds, with value and threshold, as text."""
        measured = self.agreement
        shortfalls = []
        for name, value, least, num_cases in (
            ("equal tokens", measured.equal_tokens, MIN_EQUAL_TOKENS, measured.num_prompts),
            ("matched boxes", measured.matched_boxes, MIN_MATCHED_BOXES, measured.num_boxes),
            ("IoU of boxes", measured.box_iou, MIN_BOX_IOU, measured.num_boxes),
            ("equal text", 1 - measured.text_distance, 1 - MAX_TEXT_DISTANCE, measured.num_texts),
        ):
            if num_cases >= MIN_CASES and not value >= least:  # also for NaN
                shortfalls.append(f"{name} {value:.3f}, at least {least:.2f} required")
        return shortfalls


def agreeing_defaults(
    entry_id: str, defaults: Mapping[Device, Mapping[Part, Precision]], runs: Sequence[AnswerRun]
) -> dict[Device, dict[Part, Precision]]:
    """Return the default precisions; replace those below a threshold by float32 and log them."""
    by_pair = {(run.encoder, run.decoder): run for run in runs}
    agreeing = dict[Device, dict[Part, Precision]]()
    for device, parts in defaults.items():
        precisions = agreeing[device] = dict(parts)
        alone: dict[Part, AnswerRun | None] = {
            "encoder": by_pair.get((parts["encoder"], "float32")),
            "decoder": by_pair.get(("float32", parts["decoder"])),
        }
        for part, run in alone.items():
            if run is not None and run.shortfalls:
                _log_shortfalls(f"{entry_id} on {device}: the {parts[part]} {part}", run, part)
                precisions[part] = "float32"
        together = by_pair.get((precisions["encoder"], precisions["decoder"]))
        if together is not None and "float32" not in precisions.values() and together.shortfalls:
            encoder, decoder = alone["encoder"], alone["decoder"]
            assert encoder is not None
            assert decoder is not None
            is_encoder = encoder.agreement.equal_tokens <= decoder.agreement.equal_tokens
            weaker: Part = "encoder" if is_encoder else "decoder"
            both = f"the {precisions['encoder']} encoder with the {precisions['decoder']} decoder"
            _log_shortfalls(f"{entry_id} on {device}: {both}", together, weaker)
            precisions[weaker] = "float32"
    return agreeing


def _log_shortfalls(subject: str, run: AnswerRun, part: Part) -> None:
    logger.warning(
        f"{subject} does not answer as float32 does: {'; '.join(run.shortfalls)}, on"
        f" {run.num_pictures} {run.pictures}; the default of the {part} is float32 instead"
    )


def agreement(answers: Sequence[ModelAnswer], expected: Sequence[ModelAnswer]) -> AnswerAgreement:
    shares = []
    ious = list[float]()
    num_boxes = num_expected_boxes = 0
    distances = []
    for answer, other in zip(answers, expected, strict=True):
        matcher = SequenceMatcher(None, answer.token_ids, other.token_ids, autojunk=False)
        shares.append(matcher.ratio())
        objects = _objects(answer.result)
        expected_objects = _objects(other.result)
        ious += matched_ious(objects, expected_objects)
        num_boxes += len(objects)
        num_expected_boxes += len(expected_objects)
        if isinstance(answer.result, TextResult) and isinstance(other.result, TextResult):
            distances.append(text_distance(answer.result.text, other.result.text))
    num_of_both = num_boxes + num_expected_boxes
    return AnswerAgreement(
        num_prompts=len(shares),
        equal_tokens=fmean(shares),
        num_boxes=num_expected_boxes,
        matched_boxes=2 * len(ious) / num_of_both if num_of_both else 1.0,
        box_iou=fmean(ious) if ious else 1.0,
        num_texts=len(distances),
        text_distance=fmean(distances) if distances else 0.0,
    )


def matched_ious(first: Objects, second: Objects) -> list[float]:
    """Return the IoUs of pairs with one label, best first, from `MATCHED_IOU` up."""
    ious = pairwise_iou([item.box for item in first], [item.box for item in second])
    for row, item in enumerate(first):
        for column, other in enumerate(second):
            if item.label != other.label:
                ious[row, column] = 0
    return list(map(float, map(ious.__getitem__, greedy_pairs(ious, MATCHED_IOU))))


def text_distance(first: str, second: str) -> float:
    """Return the Levenshtein distance as a share of the longer text's characters."""
    distances = list(range(len(second) + 1))
    for row, character in enumerate(first, 1):
        diagonal = distances[0]
        distances[0] = row
        for column, other in enumerate(second, 1):
            replaced = diagonal + (character != other)
            diagonal = distances[column]
            distances[column] = min(diagonal + 1, distances[column - 1] + 1, replaced)
    return distances[-1] / (max(len(first), len(second)) or 1)


def _objects(result: Result) -> Objects:
    match result:
        case DetectionsResult(detections):
            return detections
        case InstancesResult(instances):
            return instances
        case _:
            return ()


def spread(files: Sequence[Path], max_files: int) -> list[Path]:
    """Return at most `max_files`, evenly distributed over `files`."""
    count = min(max_files, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def load_photographs(files: Sequence[Path], manifest: Manifest) -> Iterator[Picture]:
    """Yield the photographs; raise `SourceError` for a file that is not an image."""
    for file in files:
        try:
            image = read_image(file)
        except (OSError, ImageError) as error:
            raise SourceError(f"{file} cannot be read as an image: {error}") from error
        yield _picture(file.stem.replace("-", " "), image, manifest)


def _scenes(manifest: Manifest) -> Iterator[Picture]:
    for seed in range(_FIRST_SCENE, _FIRST_SCENE + _NUM_SCENES):
        scene = sample_scene(seed)
        yield _picture(scene.objects[0].name, render_scene(scene, _SCENE_PX), manifest)


def _picture(subject: str, image: Image.Image, manifest: Manifest) -> Picture:
    resized = resize(image, manifest.image_size_wh, manifest.resample)
    return Picture(subject, resized, image.size)


def ask(
    entry: CatalogEntry, pictures: Sequence[Picture], num_each: int, num_fully_asked: int
) -> list[tuple[Picture, Question]]:
    """Return `num_each` questions per picture, in turns of tasks; all tasks for the first."""
    questions = []
    for index, picture in enumerate(pictures):
        # each kind of answer: a sentence, boxes, outlines, text in the image
        tasks: dict[str, dict[str, object]] = {
            "captioning": {},
            "object_detection": {},
            "open_vocabulary_detection": {"labels": [picture.subject]},
            "instance_segmentation": {"phrase": picture.subject},
            "ocr": {},
        }
        if "object_detection" in entry.task_ids:
            del tasks["open_vocabulary_detection"]
        offered = [task_id for task_id in tasks if task_id in entry.task_ids]
        num_tasks = len(offered) if index < num_fully_asked else min(num_each, len(offered))
        for turn in range(index, index + num_tasks):
            task_id = offered[turn % len(offered)]
            (question,) = Question.of_task(entry, task_id, tasks[task_id], picture.original_size_wh)
            questions.append((picture, question))
    return questions


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """The comparison of one export's precisions."""

    folder: Path  # artifacts
    entry: CatalogEntry
    manifest: Manifest
    mask_decoder: MaskDecoder | None
    kind: PictureKind
    pictures: Sequence[Picture]
    questions: Sequence[tuple[Picture, Question]]
    is_large: bool = False

    @classmethod
    def of(
        cls, job: ExportJob, folder: Path, draft: Manifest, is_large: bool = False
    ) -> "AnswerCheck":
        """Choose pictures and prompts by their cost; raise `SourceError` for a bad image."""
        cost = job.entry.parameters * draft.num_image_tokens
        num_prompts = max(_MIN_PROMPTS, int(_PROMPT_BUDGET / cost))
        num_each = 2 if num_prompts >= 2 * len(job.photographs) else 1
        kind: PictureKind = "scenes" if job.knows_scenes_only else "photographs"
        pictures = list(_scenes(draft))
        if kind == "photographs":
            pictures = list(load_photographs(spread(job.photographs, num_prompts), draft))
        pictures += load_photographs(job.own_images, draft)
        num_fully_asked = _NUM_HALF_PICTURES if num_prompts > _MIN_PROMPTS else 0
        return cls(
            folder=folder,
            entry=job.entry,
            manifest=draft,
            mask_decoder=MaskDecoder.load(job.mask_decoder) if job.mask_decoder else None,
            kind=kind,
            pictures=pictures,
            questions=ask(job.entry, pictures, num_each, num_fully_asked),
            is_large=is_large,
        )

    def measure(self, precisions: Mapping[Part, Sequence[Precision]]) -> list[AnswerRun]:
        """Measure the artifacts' `precisions`; raise `ParityError` if float32 itself fails."""
        if not self.questions:
            return []
        before = torch.get_num_threads()
        torch.set_num_threads(num_threads(0, self.manifest.hidden_size, before))
        try:
            answers = self._answers(precisions)
        finally:
            torch.set_num_threads(before)
        expected = answers.pop(_ORIGINAL)
        runs = []
        for pair, of_pair in answers.items():
            pictures = {self.questions[index][0] for index in of_pair}
            compared = agreement([*of_pair.values()], [expected[index] for index in of_pair])
            runs.append(AnswerRun(*pair, self.kind, len(pictures), compared))
        return runs

    def _answers(self, precisions: Mapping[Part, Sequence[Precision]]) -> dict[Pair, Answers]:
        features = dict[Precision, Features]()
        for encoder in dict.fromkeys(("float32", *precisions["encoder"])):
            features[encoder] = self._encode(encoder)
        defaults = {(parts["encoder"], parts["decoder"]) for parts in self.entry.precision.values()}
        answers: dict[Pair, Answers] = {}
        for decoder in ("float32", *precisions["decoder"]):
            for encoder in features:
                if "float32" in (encoder, decoder) or (encoder, decoder) in defaults:
                    answers[encoder, decoder] = {}
            self._decode(decoder, features, answers)
        return answers

    def _encode(self, precision: Precision) -> Features:
        num_pictures = _NUM_HALF_PICTURES if precision == "float16" else len(self.pictures)
        pictures = self.pictures[:num_pictures]
        images = [picture.image for picture in pictures]
        return dict(zip(pictures, encode(self.folder, precision, images), strict=True))

    def _decode(
        self,
        precision: Precision,
        features: Mapping[Precision, Features],
        answers: Mapping[Pair, Answers],
    ) -> None:
        max_positions = self.manifest.num_image_tokens + _MAX_PROMPT_TOKENS + MAX_NEW_TOKENS
        decoder = load_for_checks(
            self.folder, self.entry.family, precision, self.is_large, max_positions
        )
        cases = []
        for pair in answers:
            num_pictures = _NUM_HALF_PICTURES if "float16" in pair else len(self.pictures)
            pictures = self.pictures[:num_pictures]
            for index, (picture, _) in enumerate(self.questions):
                if pair[1] == precision and picture in pictures:
                    cases.append((pair, index))
        for start in range(0, len(cases), _BATCH_SIZE):
            batch = cases[start : start + _BATCH_SIZE]
            requests = []
            for (encoder, _), index in batch:
                picture, question = self.questions[index]
                of_picture = features[encoder][picture]
                requests.append(question.request(decoder, of_picture, MAX_NEW_TOKENS, num_beams=1))
            for (pair, index), ended in zip(batch, generate_each(decoder, requests), strict=True):
                try:
                    answers[pair][index] = self._answer(decoder, index, ended.result())
                except SequenceError as error:
                    if pair == _ORIGINAL:
                        message = f"the decoder failed on a prompt: {error}"
                        raise ParityError(message) from error
                    answers[pair][index] = _FAILED

    def _answer(self, decoder: Decoder, index: int, sequence: GeneratedSequence) -> ModelAnswer:
        picture, question = self.questions[index]
        result = question.result(decoder, sequence, picture.original_size_wh, self.mask_decoder)
        return ModelAnswer(sequence.token_ids, result)
