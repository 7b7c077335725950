"""The captured choice of tokens against eager operations on the same device, over random logits and
conditions.
"""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from random import Random

import numpy as np
import torch
from torch import Tensor

from laboratory.gpu_check.parts import Model
from laboratory.gpu_check.verdicts import Verdict
from runners.decoder.captured_passes import (
    CapturedSteps,
    CudaGraph,
    StepShape,
    StepShapes,
    capture_cuda_graph,
    row_counts,
)
from runners.tokens.choice import Choice, Chosen, RowConditions, choose_tokens
from wire.artifacts.manifest import Device

_NUM_ROWS = 21
_NUM_STEPS = 40
_MIN_EQUAL = 0.999  # share of tokens: equal scores may change places
_MAX_DIFFERENCE = 1e-4  # difference of log-probabilities
_END_TOKEN_ID = 2
_SHARPNESS = 4.0  # standard deviation of the logits


@torch.inference_mode()
def check_choices(model: Model, device: Device) -> Verdict:
    """Choose tokens of the model's vocabulary in both ways."""
    num_tokens = model.decoder("cpu").shape.num_tokens
    logits = torch.empty(_NUM_ROWS, num_tokens, device=device)

    def computed(compute: Callable[[], Tensor]) -> CudaGraph:
        """Return a graph whose replay computes: a CPU has no other."""
        output = compute().clone()
        return CudaGraph(lambda: output.copy_(compute()), output)

    capture = capture_cuda_graph if device == "cuda" else computed
    shapes = StepShapes([(num_rows, 0) for num_rows in row_counts(_NUM_ROWS)], [1])
    graphs = CapturedSteps(
        lambda ids, *_: logits[: len(ids)], shapes, _NUM_ROWS, logits.device, capture
    )
    graphs.capture_all([_END_TOKEN_ID])
    random = Random(0)
    own = list[Choice]()
    expected = list[Choice]()
    for _ in range(_NUM_STEPS):
        logits.normal_(0, _SHARPNESS)
        conditions, sequences = random_batch(random, num_tokens, _NUM_ROWS)
        given = graphs.run(StepShape(len(conditions), 1))
        chosen: Chosen[None] = graphs.choose(given, conditions, sequences)
        own += chain.from_iterable(chosen.choices)
        expected += chain.from_iterable(choose_tokens(given, conditions, sequences))
    pairs = [pair for pair in zip(own, expected, strict=True) if pair[1].score > -math.inf]
    equal = [
        pair for pair in pairs if (pair[0].row, pair[0].token_id) == (pair[1].row, pair[1].token_id)
    ]
    share = len(equal) / len(pairs)
    difference = max(abs(one.logprob - other.logprob) for one, other in equal)
    measured = {
        "graphs": graphs.num_captured,
        "choices": len(pairs),
        "equal": share,
        "max difference": difference,
    }
    is_met = (
        share >= _MIN_EQUAL
        and difference <= _MAX_DIFFERENCE
        and (device == "cpu" or graphs.num_captured > 0)
    )
    return Verdict("choices", model.id, measured, f"equal >= {_MIN_EQUAL}", is_met)


def random_batch(
    random: Random, num_tokens: int, max_rows: int
) -> tuple[list[RowConditions], list[Sequence[int]]]:
    """Return conditions of up to `max_rows` rows, and the rows of each sequence: one, or several
    beams.
    """
    conditions: list[RowConditions] = []
    sequences: list[Sequence[int]] = []
    while (
        len(conditions) + (num_beams := random.choice([1, 1, 3, 4])) <= max_rows
        and random.random() < 0.9
    ):
        sequences.append(range(len(conditions), len(conditions) + num_beams))
        conditions += _conditions(random, num_tokens, num_beams)
    return (conditions, sequences) if conditions else random_batch(random, num_tokens, max_rows)


def _conditions(random: Random, num_tokens: int, num_beams: int) -> list[RowConditions]:
    """Return the conditions on the rows of one sequence: of beams if there are several."""
    mask = np.random.default_rng(random.getrandbits(32)).random(num_tokens) < random.choice(
        [0.02, 0.5, 0.98]
    )
    mask[random.randrange(num_tokens)] = True
    is_single = num_beams == 1
    temperature = random.choice([0.0, 0.3, 1.0]) if is_single else 0.0
    forced = random.randrange(num_tokens) if random.random() < 0.1 else None
    is_constrained = forced is None and random.random() < 0.6
    banned = [random.randrange(num_tokens) for _ in range(random.choice([0, 0, 1, 5]))]
    return [
        RowConditions(
            forced=forced,
            banned=banned,
            allowed=np.packbits(mask, bitorder="little") if is_constrained else None,
            temperature=temperature,
            top_p=random.choice([0.1, 0.9, 1.0]),
            uniform=random.random(),
            beam_score=None if is_single else -5 * random.random(),
            num_candidates=1 if is_single else 2 * num_beams,
        )
        for _ in range(num_beams)
    ]
