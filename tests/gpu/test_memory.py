"""The card's memory: under load, nearly full, and with allocations that fail."""

import ctypes
import gc
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch

from runners.decoder.batch import LiveBatch
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from tests.gpu.card import Card
from tests.gpu.counts import counts, fake_runtime
from tests.gpu.models import Model, requests, scheduler, with_long_prompt, write
from tests.gpu.test_counts import new_encoder
from tests.gpu.test_exactness import MIN_EQUAL, equal_share
from tests.gpu.test_lost_device import outcome_of
from tests.support.passes import make_endless

pytestmark = pytest.mark.gpu

NUM_SEQUENCES = 16
MAX_GROWTH = 1.05
ALL = 10**6  # allocations
# The first allocation of a start that fails, and the number of those that do
FAILURES_OF_A_START = ((1, 1), (2, ALL), (9, 1), (30, ALL), (70, 1), (100, ALL), (200, ALL))


def load(model: Model) -> dict[str, list[int]]:
    """Return the memory of encoder and decoder, before and after a load of different shapes."""
    encoder = model.encoder()
    images = model.images(16)
    encoder_bytes = []
    for _ in range(2):
        for num in (1, 3, 13, 16):
            encoder.encode(images[:num])
        free_bytes, total_bytes = torch.cuda.mem_get_info()  # ONNX Runtime's included
        encoder_bytes.append(total_bytes - free_bytes)
    decoder = model.decoder()
    features = model.features()
    with scheduler(decoder, NUM_SEQUENCES) as running:
        write(running, requests(decoder, [features] * NUM_SEQUENCES, 4))
        decoder_bytes = [torch.cuda.memory_reserved()]
        for num in (1, 3, 8, 16, 32):
            write(running, requests(decoder, [features] * num, 48))
        decoder_bytes.append(torch.cuda.memory_reserved())
    return {"encoder": encoder_bytes, "decoder": decoder_bytes}


@pytest.mark.long
def test_load_takes_no_more_memory(card: Card, model_id: str) -> None:
    for before, after in card.run(load, model_id).values():
        assert 0 < after <= MAX_GROWTH * before


def full(model: Model) -> dict[str, Any]:
    """Leave memory for a part of a prefill; return the answers that stay equal."""
    decoder = model.decoder(precision="float32")
    batch = []
    for request in requests(decoder, [model.features()] * NUM_SEQUENCES, 8):
        batch.append(with_long_prompt(request))  # a captured prefill allocates nothing
    with scheduler(decoder, NUM_SEQUENCES) as running:
        for num in (NUM_SEQUENCES, 8, 4, 2):  # a full card has no memory to load their kernels
            write(running, batch[:num])
        least_bytes = _needed_bytes(running, batch[:1], "reserved")
        most_bytes = _needed_bytes(running, batch, "allocated")
        expected = write(running, batch)
        torch.cuda.empty_cache()
        ballast = []
        left_bytes = (least_bytes + most_bytes) // 2
        for spare_bytes in (2**28, 0):  # in two: a large block takes more than its size
            ballast_bytes = torch.cuda.mem_get_info()[0] - left_bytes - spare_bytes
            ballast.append(torch.empty(ballast_bytes, dtype=torch.uint8, device="cuda"))
        answers = write(running, batch)
        ballast.clear()
        answers_after = write(running, batch)
    return {
        "needed": [least_bytes, most_bytes],
        "failed allocations": torch.cuda.memory_stats()["num_ooms"],
        "equal": equal_share(expected, answers),
        "equal after": equal_share(expected, answers_after),
    }


def _needed_bytes(running: Scheduler, batch: Sequence[SequenceRequest], kind: str) -> int:
    """Return the memory that requests take; what is "reserved" includes what blocks waste."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    idle_bytes = torch.cuda.memory_stats()[f"{kind}_bytes.all.current"]
    write(running, batch)
    return int(torch.cuda.memory_stats()[f"{kind}_bytes.all.peak"] - idle_bytes)


@pytest.mark.parametrize(
    "model_id", ["florence-2-mini", pytest.param("paligemma-mini", marks=pytest.mark.long)]
)
def test_a_full_card_answers_in_halves(card: Card, model_id: str) -> None:
    result = card.run(full, model_id)
    least_bytes, most_bytes = result["needed"]
    assert 0 < least_bytes < most_bytes
    assert result["failed allocations"] > 0
    assert min(result["equal"], result["equal after"]) >= MIN_EQUAL


def sizes(model: Model) -> list[Any]:
    """Load encoders as one and as four runners of a card do; return the sizes of their batches."""
    return [new_encoder(model, num_sharing)._encoder.sizes for num_sharing in (1, 4)]


def test_an_encoder_leaves_memory_to_other_runners(fake_card: Card) -> None:
    result = fake_card.run(sizes, "florence-2-mini", FAKE_CUDA_MEMORY_MB="80")
    assert result == [[16, 8, 4, 2, 1], [8, 4, 2, 1]]


def failures(model: Model) -> dict[str, Any]:
    """Fail allocations of the start and of serving; return outcomes and memory in use."""
    decoder = model.decoder()
    make_endless(decoder)
    starts = [_start(model, decoder, first, num) for first, num in FAILURES_OF_A_START]
    served = []
    with scheduler(decoder, 8) as running:
        pending = requests(decoder, [model.features()] * 8, 6)
        write(running, pending)
        torch.cuda.empty_cache()
        idle_bytes = counts()["num_bytes"]
        for first, num in product(range(1, 9), (1, ALL)):
            _fail_allocations(first, num)
            outcomes = [outcome_of(future.result) for future in running.submit(pending)]
            _fail_allocations(0, 0)
            write(running, pending)
            torch.cuda.empty_cache()
            served.append((num, outcomes))
        after_bytes = counts()["num_bytes"]
    return {"starts": starts, "served": served, "idle": idle_bytes, "after": after_bytes}


def _fail_allocations(first: int, num: int) -> None:
    """Fail `num` allocations of the card's memory; `first` is 1 for the next one."""
    fake_runtime().fake_cuda_fail_allocations(ctypes.c_long(first), ctypes.c_long(num))


def _start(model: Model, decoder: Decoder, first: int, num: int) -> str:
    """Start encoder and batch with allocations that fail; return what becomes of it."""
    torch.cuda.empty_cache()
    _fail_allocations(first, num)
    outcome = outcome_of(lambda _: (model.encoder(), LiveBatch(decoder, 8)))
    _fail_allocations(0, 0)
    gc.collect()  # graphs that are freed during a later capture would end it
    return outcome


@pytest.mark.long
def test_failed_allocations_leak_nothing(fake_card: Card) -> None:
    result = fake_card.run(failures, "florence-2-mini")
    assert {*result["starts"]} <= {"answered", "out of memory"}
    for num, outcomes in result["served"]:
        assert {*outcomes} <= {"answered", "out of memory"}
        # a prefill is repeated in halves
        assert num == ALL or outcomes == ["answered"] * 8
    assert result["after"] <= result["idle"]
