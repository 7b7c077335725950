"""Features and tokens on the device against float32 on the CPU, and the captured choice of tokens
against eager operations on the same device.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from random import Random

import numpy as np
import torch
from torch import Tensor

from laboratory.gpu_check.parts import Model, requests
from laboratory.gpu_check.report import Verdict
from runners.decoder.batch import generate_all
from runners.decoder.captured_passes import (
    CapturedSteps,
    CudaGraph,
    StepShape,
    capture_cuda_graph,
    row_counts,
)
from runners.tokens.choice import Choice, RowConditions, choose_tokens
from wire.artifacts.manifest import Device

_NUM_IMAGES = 8
_NUM_TOKENS = 32
# Sums in another order change the best token where two are nearly equal: rarely within a few
# hundred tokens.
_MIN_EQUAL_ANSWERS = 0.9
_MIN_COSINE = 0.999
_NUM_ROWS = 21
_NUM_CHOICES = 40
_MIN_EQUAL_CHOICES = 0.999  # equal scores may change places
_MAX_DIFFERENCE = 1e-4  # difference of log-probabilities
_END_TOKEN_ID = 2
_SHARPNESS = 4.0  # standard deviation of the logits


def check_features(model: Model, device: Device) -> Verdict:
    """Compare the device's encoder with float32 on the CPU."""
    images = model.images(_NUM_IMAGES)
    expected = model.encoder("cpu", "float32").encode(images).flatten(0, 1)
    features = model.encoder(device).encode(images).cpu().flatten(0, 1)
    lowest = float(torch.cosine_similarity(features, expected, dim=-1).min())  # NaN if a feature is
    precision = model.manifest.precision[device]["encoder"]
    measured = {"precision": precision, "min cosine": round(lowest, 6)}
    aim = f"min cosine >= {_MIN_COSINE}"
    return Verdict(measured, aim, lowest >= _MIN_COSINE)


def check_tokens(model: Model, device: Device, num_beams: int) -> Verdict:
    """Compare answers of the device's decoder in float32 with the CPU's, over the same features."""
    features = model.encoder("cpu", "float32").encode(model.images(_NUM_IMAGES))
    places: tuple[Device, Device] = ("cpu", device)
    answers = []
    for place in places:
        decoder = model.decoder(place, "float32")
        batch = requests(decoder, list(features.to(place)), _NUM_TOKENS, num_beams=num_beams)
        # Lengths differ, so that sequences move to freed slots while a pass runs.
        for index, request in enumerate(batch):
            batch[index] = replace(request, max_new_tokens=_NUM_TOKENS - 3 * index)
        answers.append([answer.token_ids for answer in generate_all(decoder, batch)])
    share = sum(map(operator.eq, *answers)) / _NUM_IMAGES
    aim = f">= {_MIN_EQUAL_ANSWERS}"
    return Verdict({"equal answers": share}, aim, share >= _MIN_EQUAL_ANSWERS)


@torch.inference_mode()
def check_choices(model: Model, device: Device) -> Verdict:
    """Choose tokens of the model's vocabulary by captured and by eager operations."""
    num_tokens = model.decoder("cpu").shape.num_tokens
    logits = torch.empty(_NUM_ROWS, num_tokens, device=device)
    shapes = [StepShape(num_rows, 1) for num_rows in row_counts(_NUM_ROWS)]
    capture = capture_cuda_graph if device == "cuda" else _computed
    graphs = CapturedSteps(
        lambda ids, *_: logits[: len(ids)], shapes, _NUM_ROWS, logits.device, capture
    )
    graphs.capture_all([_END_TOKEN_ID])
    random = Random(0)
    captured = list[Choice]()
    eager = list[Choice]()
    for _ in range(_NUM_CHOICES):
        logits.normal_(0, _SHARPNESS)
        conditions, sequences = random_batch(random, num_tokens, _NUM_ROWS)
        step = graphs.run(StepShape(len(conditions), 1))
        captured += chain.from_iterable(graphs.choose(step, conditions, sequences).choices)
        eager += chain.from_iterable(choose_tokens(step, conditions, sequences))
    num_possible = 0
    differences = []  # of the log-probabilities of equal tokens
    for choice, expected in zip(captured, eager, strict=True):
        if expected.score > -math.inf:
            num_possible += 1
            if (choice.row, choice.token_id) == (expected.row, expected.token_id):
                differences.append(abs(choice.logprob - expected.logprob))
    share = len(differences) / num_possible
    measured = {"graphs": graphs.num_captured, "choices": len(eager), "equal": share}
    is_equal = share >= _MIN_EQUAL_CHOICES and max(differences) <= _MAX_DIFFERENCE
    is_met = is_equal and (device == "cpu" or graphs.num_captured > 0)
    aim = f"equal >= {_MIN_EQUAL_CHOICES}, difference <= {_MAX_DIFFERENCE}"
    return Verdict(measured | {"max difference": max(differences)}, aim, is_met)


def _computed(compute: Callable[[], Tensor]) -> CudaGraph:
    """Return a graph whose replay computes: a CPU has no other."""
    output = compute().clone()
    return CudaGraph(lambda: output.copy_(compute()), output)


def random_batch(
    random: Random, num_tokens: int, max_rows: int
) -> tuple[list[RowConditions], list[Sequence[int]]]:
    """Return conditions of up to `max_rows` rows, and the rows of each sequence: one, or several
    beams.
    """
    conditions: list[RowConditions] = []
    sequences: list[Sequence[int]] = []
    while not conditions or random.random() < 0.9:
        num_beams = random.choice([1, 1, 3, 4])
        if len(conditions) + num_beams > max_rows:
            break
        sequences.append(range(len(conditions), len(conditions) + num_beams))
        conditions += _conditions(random, num_tokens, num_beams)
    return conditions, sequences


def _conditions(random: Random, num_tokens: int, num_beams: int) -> list[RowConditions]:
    """Return the conditions on the rows of one sequence: of beams if there are several."""
    mask = np.random.default_rng(random.getrandbits(32)).random(num_tokens) < random.choice(
        [0.02, 0.5, 0.98]
    )
    mask[random.randrange(num_tokens)] = True
    is_single = num_beams == 1
    forced = random.randrange(num_tokens) if random.random() < 0.1 else None
    is_constrained = forced is None and random.random() < 0.6
    row = RowConditions(
        forced=forced,
        banned=[random.randrange(num_tokens) for _ in range(random.choice([0, 0, 1, 5]))],
        allowed=np.packbits(mask, bitorder="little") if is_constrained else None,
        temperature=random.choice([0.0, 0.3, 1.0]) if is_single else 0.0,
        top_p=random.choice([0.1, 0.9, 1.0]),
        uniform=random.random(),
        num_candidates=1 if is_single else 2 * num_beams,
    )
    if is_single:
        return [row]
    return [replace(row, beam_score=-5 * random.random()) for _ in range(num_beams)]
