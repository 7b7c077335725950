"""The measurements of an export on its probes: parity with the reference, then the difference of
each other precision.

In float32, image features may differ by rounding only. Tokens may differ only at a near tie, where
the reference's own logits are so close that rounding decides; near ties are counted. A precision
that breaks the model is logged and left out; where it was the default, float32 takes its place.
Parts are loaded one after another, so that only one is in memory. Everything runs on the CPU, so
the result is the same on every host: float16 encoders in true half arithmetic (encoding.py),
float16 and bfloat16 decoders in torch, which keeps hidden states in their dtype. CUDA rounds in the
same places but sums in another order. Shapes: B images, N image tokens, C hidden, V vocabulary.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from export.artifacts.vision_module import ImageInput
from export.checks.asking import Question
from export.checks.encoding import encode
from export.checks.reference import GreedyAnswer, Reference, load_for_checks
from export.errors import ParityError
from export.scenes import CANVAS_PX, Scene, box_xyxy, render_scene, sample_scene
from imaging.files import resize
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.errors import SequenceError
from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask
from wire.artifacts.manifest import Part, Precision, vision_encoder_file

logger = logging.getLogger(__name__)

MIN_COSINE = 0.9999
# relative to the largest reference value; random towers of real widths reached 5e-5
MAX_RELATIVE_ERROR = 1e-3
NEAR_TIE_LOGITS = 1e-3  # well above the rounding of sums in another order
# Below this a precision is broken; whether it is accurate enough is decided by its answers. int8
# features reach 0.9998 in the embedded checkpoints, and 0.966 in a random tower of
# Florence-2-base's size.
MIN_MEAN_COSINE = 0.8
_SCENE_PX = 256  # differs from every model's input size, so that resizing is covered
_MANY_PARAMETERS = 1e8

Measured = dict[str, Any]  # of a manifest


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The number of probes, and the maximum number of tokens of an answer."""

    num_probes: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One image, resized as the service does, and one question about it."""

    image: Image.Image
    question: Question
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The reference's results for all probes: its model is freed before the export loads."""

    image_features: Tensor  # (B, N, C)
    prompt_ids: tuple[tuple[int, ...], ...]
    answers: tuple[GreedyAnswer, ...]


@dataclass(frozen=True, slots=True)
class MeasuredEncoders:
    """Float32 features of probes and extreme images, and the measurements."""

    features: Tensor  # (B, N, C)
    extreme_features: Tensor
    parity: Measured
    by_precision: Mapping[Precision, Measured]  # without those that fail


def make_probes(
    entry: CatalogEntry, image_input: ImageInput, plan: ProbePlan | None = None
) -> list[Probe]:
    """Return probes of the model's tasks: few where an image or a token takes long."""
    if plan is None:
        plan = ProbePlan(8, 32) if entry.parameters > _MANY_PARAMETERS else ProbePlan(20, 64)
    probes = []
    for index in range(plan.num_probes):
        scene = sample_scene(index)
        rendered = render_scene(scene, _SCENE_PX)
        questions = list[Question]()
        for task_id, values in _requests(scene):
            if task_id in entry.task_ids:
                with suppress(UnsupportedTask):
                    questions += Question.of_task(entry, task_id, values, rendered.size)[:1]
        image = resize(rendered, image_input.size_wh, image_input.resample)
        probes.append(Probe(image, questions[index % len(questions)], plan.max_new_tokens))
    return probes


def _requests(scene: Scene) -> list[tuple[str, dict[str, object]]]:
    first = scene.objects[0]
    region = [side * _SCENE_PX / CANVAS_PX for side in box_xyxy(first)]
    names = [scene_object.name for scene_object in scene.objects]
    return [
        ("captioning", {"detail": "short"}),
        ("captioning", {"detail": "detailed"}),
        ("object_detection", {}),
        ("dense_region_captioning", {}),
        ("region_proposal", {}),
        ("open_vocabulary_detection", {"labels": [first.shape]}),
        ("open_vocabulary_detection", {"labels": names}),
        ("phrase_grounding", {"caption": " and ".join(names)}),
        ("phrase_grounding", {"phrases": names}),
        ("instance_segmentation", {"phrase": first.name}),
        ("instance_segmentation", {"region": region}),
        ("ocr", {}),
        ("ocr_with_regions", {}),
        ("region_description", {"region": region, "detail": "category"}),
        ("region_description", {"region": region, "detail": "text"}),
        ("visual_question_answering", {"question": f"what color is the {first.shape}?"}),
    ]


def extreme_images(size_wh: tuple[int, int]) -> dict[str, Image.Image]:
    """Return images, by name, of extreme activations: products of like tokens add up."""
    width, height = size_wh
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {
        "white": Image.new("RGB", size_wh, "white"),
        "black": Image.new("RGB", size_wh, "black"),
        "noise": Image.fromarray(noise),
    }


def run_reference(reference: Reference, probes: Sequence[Probe]) -> ReferenceAnswers:
    images = list(map(attrgetter("image"), probes))
    texts = list(map(attrgetter("question.text"), probes))
    features = reference.image_features(images)
    answers = reference.generate_all(texts, images, features, probes[0].max_new_tokens)
    return ReferenceAnswers(features, tuple(map(reference.prompt_ids, texts, images)), answers)


def measure(
    folder: Path,
    entry: CatalogEntry,
    precisions: Mapping[Part, Sequence[Precision]],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
    is_large: bool = False,
) -> Measured:
    """Return the manifest's measurements, without precisions that fail; raise `ParityError`."""
    images = list(map(attrgetter("image"), probes))
    encoders = measure_encoders(
        folder, entry, precisions["encoder"], images, expected.image_features
    )
    logger.info("comparing answers with transformers")
    decoder = load_for_checks(folder, entry.family, "float32", is_large)
    requests = _make_requests(decoder, encoders.features, probes, expected)
    try:
        sequences = generate_all(decoder, requests)
    except SequenceError as error:
        raise ParityError(f"the decoder failed on a prompt: {error}") from error
    token_ids = attrgetter("token_ids")
    tokens = compare_tokens(list(map(token_ids, sequences)), expected.answers)
    answers = list(map(token_ids, expected.answers))
    for features in encoders.extreme_features:
        # One step suffices: the prefill multiplies the features by every weight.
        requests.append(replace(requests[0], image_features=features))
        answers.append((0,))
    logits = list(_forced_logits(decoder, requests, answers))
    del decoder
    decoders = dict[Precision, Measured]()
    for precision in precisions["decoder"]:
        if precision != "float32":
            with leaving_out_broken("decoder", entry, precision):
                logger.info(f"measuring the decoder in {precision}")
                other = load_for_checks(folder, entry.family, precision, is_large)
                rows = _forced_logits(other, requests, answers)
                difference = compare(f"the {precision} decoder", rows, logits)
                decoders[precision] = difference | {"num_tokens": len(logits)}
    return {
        "image_features": encoders.parity,
        "tokens": tokens,
        "encoder": encoders.by_precision,
        "decoder": decoders,
    }


def measure_encoders(
    folder: Path,
    entry: CatalogEntry,
    precisions: Sequence[Precision],
    images: Sequence[Image.Image],
    expected_features: Tensor,
) -> MeasuredEncoders:
    """Compare the encoders; remove the files of those that fail; raise `ParityError`."""
    logger.info("comparing image features with transformers")
    features = encode(folder, "float32", images)
    parity = compare_features(features, expected_features)
    extremes = extreme_images(images[0].size)
    extreme_features = encode(folder, "float32", list(extremes.values()))
    by_precision = dict[Precision, Measured]()
    for precision in precisions:
        if precision == "float32":
            continue
        with leaving_out_broken("encoder", entry, precision):
            logger.info(f"measuring the encoder in {precision}")
            if precision == "float16":
                few_images = {"scene": images[0], **extremes}
                few_features = torch.cat([features[:1], extreme_features])
                by_precision[precision] = measure_half_encoder(folder, few_images, few_features)
            else:
                rows = encode(folder, precision, images)
                by_precision[precision] = compare(f"the {precision} encoder", rows, features)
        if precision not in by_precision:
            (folder / vision_encoder_file(precision)).unlink()
    return MeasuredEncoders(features, extreme_features, parity, by_precision)


@contextmanager
def leaving_out_broken(part: Part, entry: CatalogEntry, precision: Precision) -> Iterator[None]:
    try:
        yield
    except ParityError as error:
        devices = [name for name, parts in entry.precision.items() if parts[part] == precision]
        default = f"; the default on {' and '.join(devices)} is float32 instead" if devices else ""
        logger.warning(f"{entry.id}: {error}; {precision} is left out{default}")


def measure_half_encoder(
    folder: Path, images: Mapping[str, Image.Image], float32_features: Tensor
) -> Measured:
    """Measure the float16 encoder in half arithmetic; raise `ParityError` if an image fails."""
    rows = encode(folder, "float16", list(images.values()))
    for name, row, expected in zip(images, rows, float32_features, strict=True):
        compare(f"the float16 encoder on the {name} image", [row], [expected])
    return compare("the float16 encoder", rows, float32_features)


def compare(name: str, rows: Iterable[Tensor], float32_rows: Iterable[Tensor]) -> Measured:
    """Return the difference of rows (…, C); raise `ParityError` below `MIN_MEAN_COSINE`."""
    cosines = []
    errors = []
    largest = []
    for row, expected in zip(rows, float32_rows, strict=True):
        cosines.append(torch.cosine_similarity(row, expected, dim=-1).flatten())
        errors.append((row - expected).abs().max())
        largest.append(expected.abs().max())
    measured = {
        "mean_cosine": float(torch.cat(cosines).mean()),
        "min_cosine": float(torch.cat(cosines).min()),
        "max_abs_error": float(torch.stack(errors).max()),
        "max_abs_float32": float(torch.stack(largest).max()),
    }
    if not measured["mean_cosine"] >= MIN_MEAN_COSINE:  # also fails for NaN
        raise ParityError(f"{name} differs from float32: {measured}")
    return measured


def compare_features(features: Tensor, expected: Tensor) -> Measured:
    """Return the difference (B, N, C); raise `ParityError` if it is more than rounding, or NaN."""
    if features.shape != expected.shape:
        raise ParityError(
            f"image features have shape {tuple(features.shape)}; the reference has"
            f" {tuple(expected.shape)}"
        )
    measured = {
        "num_images": len(features),
        "min_cosine": float(torch.cosine_similarity(features, expected, dim=-1).min()),
        "max_abs_error": float((features - expected).abs().max()),
        "max_abs_reference": float(expected.abs().max()),
    }
    # both are False for NaN
    is_close = measured["max_abs_error"] <= MAX_RELATIVE_ERROR * measured["max_abs_reference"]
    if not (is_close and measured["min_cosine"] >= MIN_COSINE):
        raise ParityError(f"image features differ from the reference: {measured}")
    return measured


def compare_tokens(
    answers: Sequence[Sequence[int]], expected_answers: Sequence[GreedyAnswer]
) -> Measured:
    """Compare answers; raise `ParityError` at a difference that is not a near tie."""
    num_near_ties = 0
    for index, (answer, expected) in enumerate(zip(answers, expected_answers, strict=True)):
        step = first_difference(answer, expected.token_ids)
        if step is None:
            continue
        lead = math.inf
        if step < min(len(answer), len(expected.token_ids)):
            logits = expected.top_logits[step]
            lead = max(logits.values()) - logits.get(answer[step], -math.inf)
        if lead > NEAR_TIE_LOGITS:
            raise ParityError(
                f"the answer to prompt {index} has tokens {list(answer)}; "
                f"the reference has {list(expected.token_ids)}; they differ from token {step} on"
            )
        num_near_ties += 1
    return {
        "num_prompts": len(answers),
        "num_tokens": sum(map(len, answers)),
        "num_near_ties": num_near_ties,
    }


def first_difference(answer: Sequence[object], expected: Sequence[object]) -> int | None:
    """Return the first index at which tokens or texts differ, or None if they are equal."""
    for step, (item, other) in enumerate(zip(answer, expected, strict=False)):
        if item != other:
            return step
    return None if len(answer) == len(expected) else min(len(answer), len(expected))


def _make_requests(
    decoder: Decoder, features: Tensor, probes: Sequence[Probe], expected: ReferenceAnswers
) -> list[SequenceRequest]:
    """Return the probes as requests; raise `ParityError` if a prompt is tokenised differently."""
    requests = []
    for probe, row, expected_ids in zip(probes, features, expected.prompt_ids, strict=True):
        prompt_ids = decoder.text.prompt_ids(probe.question.segments)
        if prompt_ids != expected_ids:
            raise ParityError(
                f"{probe.question.text!r} is tokenised as {prompt_ids}; the reference has"
                f" {expected_ids}"
            )
        requests.append(SequenceRequest(row, prompt_ids, probe.max_new_tokens))
    return requests


@torch.inference_mode()
def _forced_logits(
    decoder: Decoder, requests: Sequence[SequenceRequest], answers: Sequence[Sequence[int]]
) -> Iterator[Tensor]:
    """Yield the logits (V,) of every answer's tokens, given the answer's own earlier tokens."""
    engine = EagerEngine(decoder, len(requests))
    logits = engine.prefill(requests, 0)
    for step in range(max(map(len, answers))):
        for row, answer in zip(logits, answers, strict=True):
            if step < len(answer):
                yield row.float()
        logits = engine.decode([[answer[min(step, len(answer) - 1)]] for answer in answers])
