"""The measurements of an export on its probes: parity with the reference, then the difference of
each other precision.

In float32, image features may differ by rounding only. Tokens may differ only at a near tie, where
the reference's own logits are so close that rounding decides; near ties are counted. A precision
that breaks the model is logged and left out; where it was the default, float32 takes its place.
Parts are loaded one after another, so that only one is in memory. Everything runs on the CPU, so
the result is the same on every host: float16 encoders in true half arithmetic (half_arithmetic.py),
float16 and bfloat16 decoders in torch, which keeps hidden states in their dtype. CUDA rounds in the
same places but sums in another order. Shapes: B images, N image tokens, C hidden, V vocabulary.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from export.artifacts.vision_module import ImageInput
from export.checks.half_arithmetic import HalfEncoder
from export.checks.reference import GreedyAnswer, Reference, load_for_checks
from export.errors import ParityError
from export.progress import Progress
from export.scenes import CANVAS_PX, Scene, box_xyxy, render_scene, sample_scene
from imaging.files import resize
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.errors import SequenceError
from tasks.catalog import CatalogEntry
from tasks.errors import UnsupportedTask
from tasks.families import FAMILIES
from tasks.prompts import Prompt
from tasks.table import TASKS, parse_parameters
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

Features = NDArray[np.float32]  # (B, N, C)
Measured = dict[str, Any]  # of a manifest


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """The number of probes, and the maximum number of tokens of an answer."""

    num_probes: int
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Probe:
    """One image, resized as the service does, and one prompt about it."""

    image: Image.Image
    prompt: Prompt
    max_new_tokens: int

    @property
    def text(self) -> str:
        """The prompt as one string."""
        return "".join(segment.text for segment in self.prompt)


@dataclass(frozen=True, slots=True)
class ReferenceAnswers:
    """The reference's results for all probes: its model is freed before the export loads."""

    image_features: Features
    prompt_ids: tuple[tuple[int, ...], ...]
    answers: tuple[GreedyAnswer, ...]


@dataclass(frozen=True, slots=True)
class MeasuredEncoders:
    """Float32 features of probes and extreme images, and the measurements."""

    features: Features
    extreme_features: Features
    parity: Measured
    by_precision: Mapping[Precision, Measured]  # without those that fail


def plan_for(entry: CatalogEntry) -> ProbePlan:
    """Return few probes where an image takes seconds, or every token reads gigabytes of weights."""
    return ProbePlan(8, 32) if entry.parameters > _MANY_PARAMETERS else ProbePlan(20, 64)


def make_probes(
    entry: CatalogEntry, image_input: ImageInput, plan: ProbePlan | None = None
) -> tuple[Probe, ...]:
    """Return probes of different scenes, cycling through the tasks that the model offers."""
    plan = plan or plan_for(entry)
    probes = []
    for index in range(plan.num_probes):
        scene = sample_scene(index)
        rendered = render_scene(scene, _SCENE_PX)
        prompts = list[Prompt]()
        for task_id, values in _requests(scene):
            if task_id in entry.task_ids:
                parameters = parse_parameters(TASKS[task_id], values)
                with suppress(UnsupportedTask):
                    prompts += FAMILIES[entry.family].task_prompts(
                        entry, task_id, parameters, rendered.size
                    )[:1]
        image = resize(rendered, image_input.size_wh, image_input.resample)
        probes.append(Probe(image, prompts[index % len(prompts)], plan.max_new_tokens))
    return tuple(probes)


def _requests(scene: Scene) -> list[tuple[str, dict[str, object]]]:
    """Return requests of every task about a scene's objects, with their tasks."""
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
    """Return images by name that drive activations to extremes: the products of like tokens add
    up.
    """
    width, height = size_wh
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {
        "white": Image.new("RGB", size_wh, "white"),
        "black": Image.new("RGB", size_wh, "black"),
        "noise": Image.fromarray(noise),
    }


def run_reference(reference: Reference, probes: Sequence[Probe]) -> ReferenceAnswers:
    """Compute image features, prompt ids and answers of every probe."""
    images = [probe.image for probe in probes]
    texts = [probe.text for probe in probes]
    image_features = reference.image_features(images)
    answers = reference.generate_all(texts, images, image_features, probes[0].max_new_tokens)
    prompt_ids = (reference.prompt_ids(probe.text, probe.image) for probe in probes)
    return ReferenceAnswers(image_features.numpy(), tuple(prompt_ids), answers)


def measure(
    folder: Path,
    entry: CatalogEntry,
    precisions: Mapping[Part, Sequence[Precision]],
    probes: Sequence[Probe],
    expected: ReferenceAnswers,
    progress: Progress,
    is_large: bool = False,
) -> Measured:
    """Return the measurements for the manifest, without precisions that fail.

    The float32 decoder of a large model runs layer by layer. Raise `ParityError`.
    """
    images = [probe.image for probe in probes]
    encoders = measure_encoders(
        folder, entry, precisions["encoder"], images, expected.image_features, progress
    )
    progress.begin("comparing answers with transformers")
    decoder = load_for_checks(folder, entry.family, "float32", is_large)
    requests = _make_requests(decoder, encoders.features, probes, expected)
    tokens = _check_answers(decoder, requests, expected)
    answers = [answer.token_ids for answer in expected.answers]
    for features in encoders.extreme_features:
        # One step suffices: the prefill multiplies the features by every weight.
        requests.append(replace(requests[0], image_features=torch.from_numpy(features)))
        answers.append((0,))
    logits = list(_forced_logits(decoder, requests, answers))
    del decoder

    def of_decoder(precision: Precision) -> Measured:
        progress.begin(f"measuring the decoder in {precision}")
        other = load_for_checks(folder, entry.family, precision, is_large)
        # how often the best token equals float32's, given the reference's earlier tokens
        is_same = list[bool]()

        def rows() -> Iterator[Tensor]:
            # one by one: all logits take gigabytes
            for row, best in zip(_forced_logits(other, requests, answers), logits, strict=True):
                is_same.append(bool(row.argmax() == best.argmax()))
                yield row

        difference = compare(f"the {precision} decoder", rows(), logits)
        return difference | {"num_tokens": len(is_same), "num_same": sum(is_same)}

    return {
        "image_features": encoders.parity,
        "tokens": tokens,
        "encoder": encoders.by_precision,
        "decoder": dict(each_measured("decoder", entry, precisions["decoder"], of_decoder)),
    }


def measure_encoders(
    folder: Path,
    entry: CatalogEntry,
    precisions: Sequence[Precision],
    images: Sequence[Image.Image],
    expected_features: Features,
    progress: Progress,
) -> MeasuredEncoders:
    """Compare the encoders with the reference's features of `images`; raise `ParityError`."""
    progress.begin("comparing image features with transformers")
    features = _encode(folder, "float32", images)
    extremes = extreme_images(images[0].size)
    parity = compare_features(features, expected_features)
    extreme_features = _encode(folder, "float32", list(extremes.values()))

    def of_precision(precision: Precision) -> Measured:
        progress.begin(f"measuring the encoder in {precision}")
        if precision == "float16":
            few_features = np.concatenate([features[:1], extreme_features])
            return measure_half_encoder(folder, {"scene": images[0], **extremes}, few_features)
        rows = _encode(folder, precision, images)
        return compare(f"the {precision} encoder", _tensors(rows), _tensors(features))

    measured = dict(each_measured("encoder", entry, precisions, of_precision))
    return MeasuredEncoders(features, extreme_features, parity, measured)


def each_measured(
    part: Part,
    entry: CatalogEntry,
    precisions: Sequence[Precision],
    measure_one: Callable[[Precision], Measured],
) -> Iterator[tuple[Precision, Measured]]:
    """Yield each other precision's measurements; log and skip those that break the model."""
    for precision in precisions:
        try:
            if precision != "float32":
                yield precision, measure_one(precision)
        except ParityError as error:
            devices = [
                device for device, parts in entry.precision.items() if parts[part] == precision
            ]
            default = ""
            if devices:
                default = f"; the default on {' and '.join(devices)} is float32 instead"
            logger.warning("%s: %s; %s is left out%s", entry.id, error, precision, default)


def measure_half_encoder(
    folder: Path, images: Mapping[str, Image.Image], float32_features: Features
) -> Measured:
    """Measure the float16 encoder in true half arithmetic.

    Raise `ParityError` if it fails on one of `images`.
    """
    encoder = HalfEncoder(folder / vision_encoder_file("float16"))
    rows = []
    for (name, image), expected in zip(images.items(), _tensors(float32_features), strict=True):
        rows.append(torch.from_numpy(encoder.encode(np.asarray(image)[None])[0]))
        compare(f"the float16 encoder on the {name} image", rows[-1:], [expected])
    return compare("the float16 encoder", rows, _tensors(float32_features))


def compare(name: str, rows: Iterable[Tensor], float32_rows: Iterable[Tensor]) -> Measured:
    """Return the difference of rows (…, C) from float32's.

    Raise `ParityError` if the mean of the cosines, over C, is below `MIN_MEAN_COSINE`.
    """
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


def compare_features(features: Features, expected: Features) -> Measured:
    """Return the difference from the reference's image features.

    Raise `ParityError` if they differ by more than rounding or are not finite.
    """
    if features.shape != expected.shape:
        raise ParityError(
            f"image features have shape {features.shape}; the reference has {expected.shape}"
        )
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(expected, axis=-1)
    min_cosine = float(((features * expected).sum(axis=-1) / norms).min())
    max_abs_error = float(np.abs(features - expected).max())
    max_abs_reference = float(np.abs(expected).max())
    measured = {
        "num_images": len(features),
        "min_cosine": min_cosine,
        "max_abs_error": max_abs_error,
        "max_abs_reference": max_abs_reference,
    }
    is_close = max_abs_error <= MAX_RELATIVE_ERROR * max_abs_reference  # False for NaN
    if not (is_close and min_cosine >= MIN_COSINE):
        raise ParityError(f"image features differ from the reference: {measured}")
    return measured


def compare_tokens(
    answers: Sequence[Sequence[int]], expected_answers: Sequence[GreedyAnswer]
) -> Measured:
    """Compare answers token by token.

    Raise `ParityError` at a difference that is not a near tie.
    """
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
    decoder: Decoder, features: Features, probes: Sequence[Probe], expected: ReferenceAnswers
) -> list[SequenceRequest]:
    """Return the probes as requests; raise `ParityError` if a prompt is tokenised differently."""
    requests = []
    for probe, row, expected_ids in zip(probes, features, expected.prompt_ids, strict=True):
        segments = [(segment.text, segment.is_control) for segment in probe.prompt]
        prompt_ids = decoder.text.prompt_ids(segments)
        if prompt_ids != expected_ids:
            raise ParityError(
                f"{probe.text!r} is tokenised as {prompt_ids}; the reference has {expected_ids}"
            )
        requests.append(SequenceRequest(torch.from_numpy(row), prompt_ids, probe.max_new_tokens))
    return requests


def _check_answers(
    decoder: Decoder, requests: Sequence[SequenceRequest], expected: ReferenceAnswers
) -> Measured:
    """Generate all answers in one batch and compare them."""
    try:
        answers = generate_all(decoder, requests)
    except SequenceError as error:
        raise ParityError(f"the decoder failed on a prompt: {error}") from error
    return compare_tokens([answer.token_ids for answer in answers], expected.answers)


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


def _encode(folder: Path, precision: Precision, images: Sequence[Image.Image]) -> Features:
    encoder = VisionEncoder(folder, precision=precision)
    encoder.load()
    return torch.cat([encoder.encode(np.asarray(image)[None]) for image in images]).numpy()


def _tensors(features: Features) -> list[Tensor]:
    return list(torch.from_numpy(features))
