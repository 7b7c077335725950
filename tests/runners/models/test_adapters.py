"""Adapters made by peft, mixed in one batch: the tokens of transformers' `generate` with the merged
model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checks.reference import Reference
from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from runners.encoder.session import VisionEncoder
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tests.support.catalog import CATALOG
from tests.support.decoder_cases import MAX_NEAR_TIES, Case, make_case
from tests.support.drafted_answers import asked, generate, generate_without_drafts
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.lora import merged, write_adapter
from tests.support.passes import Passes
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.manifest import DECODER_FILE, Precision, read_manifest

NUM_ADAPTERS = 8
NUM_BEAMS = 3
MAX_NEW_TOKENS = 24
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"r": 16, "use_rslora": True},
    {"r": 2, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.self_attn.v_proj": 32}},
    {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},  # PEFT's default for most models
)
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Tuned:
    """A base with its adapters, loaded into one decoder, and the checkpoint with each adapter
    merged.
    """

    case: Case
    artifacts: Path
    tensors: Mapping[str, Mapping[str, torch.Tensor]]  # key: adapter
    references: Mapping[str | None, Reference]

    def request(self, index: int, num_beams: int = 1) -> SequenceRequest:
        """Return the request of an index, for the base or one of its adapters in turn."""
        return replace(
            self.case.request(index, MAX_NEW_TOKENS, num_beams), adapter=self.adapter(index)
        )

    def adapter(self, index: int) -> str | None:
        return list(self.references)[index % len(self.references)]


@pytest.fixture(scope="module", params=EMBEDDED)
def tuned(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    folder = tmp_path_factory.mktemp("adapters")
    artifacts = exported.newest(request.param)
    case = make_case(request.param, exported, folder)
    references: dict[str | None, Reference] = {None: case.reference}
    tensors = {}
    for seed in range(NUM_ADAPTERS):
        reference = Reference.load(MODELS / request.param)
        written = write_adapter(
            reference.model, folder / str(seed), seed, **OPTIONS[seed % len(OPTIONS)]
        )
        tensors[f"tuned-{seed}"] = read_adapter(written, artifacts / DECODER_FILE, AdapterLimits())
        references[f"tuned-{seed}"] = Reference(
            merged(reference.model, written), reference.processor
        )
    return Tuned(
        replace(case, decoder=adapted_decoder(artifacts, tensors)), artifacts, tensors, references
    )


def adapted_decoder(
    artifacts: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    precision: Precision = "float32",
    pool_rank: int = 0,
    max_positions: int = 0,
) -> Decoder:
    adapters = Adapters()
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, precision, "cpu", max_positions, adapters=adapters)
    adapters.open_pool(pool_rank, 10**9)
    for key, each in tensors.items():
        adapters.add(key, each)
    return decoder


@pytest.mark.parametrize("num_prompts", [9, pytest.param(108, marks=pytest.mark.long)])
@pytest.mark.parametrize("num_beams", [1, NUM_BEAMS])
def test_adapters_mixed_in_one_batch_give_the_tokens_of_the_merged_model(
    tuned: Tuned, num_beams: int, num_prompts: int, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = [tuned.request(index, num_beams) for index in range(num_prompts)]
    written = generate_all(tuned.case.decoder, requests)
    num_near_ties = 0
    for index, (request, sequence) in enumerate(zip(requests, written, strict=True)):
        case = replace(tuned.case, reference=tuned.references[tuned.adapter(index)])
        score = sum(sequence.logprobs) / len(sequence.logprobs)
        num_near_ties += not case.equals_reference(index, request, sequence.token_ids, score)
    with capsys.disabled():
        print(f"\n{num_near_ties} near ties in {num_prompts} answers", end=" ")
    assert num_near_ties <= MAX_NEAR_TIES * num_prompts


def test_adapters_change_the_answers_of_the_base(tuned: Tuned) -> None:
    """Otherwise the comparison above would compare the base with itself."""
    requests = [tuned.request(index) for index in range(18)]
    of_base = [replace(each, adapter=None) for each in requests]
    adapted = generate_all(tuned.case.decoder, requests)
    base = generate_all(tuned.case.decoder, of_base)
    num_equal = sum(
        one.token_ids == other.token_ids for one, other in zip(adapted, base, strict=True)
    )
    assert 2 <= num_equal <= 10  # two requests are of the base


def test_adapters_in_captured_passes_give_the_tokens_of_eager_ones(tuned: Tuned) -> None:
    decoder = adapted_decoder(tuned.artifacts, tuned.tensors, pool_rank=96, max_positions=512)
    requests = [replace(tuned.request(index), max_new_tokens=12) for index in range(9)]
    expected = generate_all(tuned.case.decoder, requests)
    passes = Passes(decoder, num_slots=9)
    found = generate_all(decoder, requests, lambda *_: passes)
    assert [each.token_ids for each in found] == [each.token_ids for each in expected]
    assert len(passes.num_slots_ahead) > 5


def test_adapters_that_come_and_go_while_others_are_decoded_change_no_answer(tuned: Tuned) -> None:
    first, *others = tuned.tensors
    adapters = Adapters()
    family = read_manifest(tuned.artifacts).family
    decoder = load_decoder(tuned.artifacts, family, "float32", "cpu", adapters=adapters)
    adapters.add(first, tuned.tensors[first])
    requests = [
        replace(tuned.request(index), adapter=[None, first][index % 2]) for index in range(8)
    ]
    expected = [generate_all(tuned.case.decoder, [request])[0].token_ids for request in requests]
    scheduler = Scheduler(decoder, "hot adapters", SchedulerLimits(4, 100, 800))
    scheduler.start()
    futures = [scheduler.submit([request])[0] for request in requests]
    for other in others * 2:  # a key that is added again keeps its number
        adapters.add(other, tuned.tensors[other])
        adapters.remove(other)
    assert [future.result(TIMEOUT_S).sequence.token_ids for future in futures] == expected
    adapters.add(others[0], tuned.tensors[others[0]])
    named = [replace(request, adapter=others[0]) for request in requests]
    futures = [scheduler.submit([request])[0] for request in named]
    expected = [generate_all(tuned.case.decoder, [request])[0].token_ids for request in named]
    assert [future.result(TIMEOUT_S).sequence.token_ids for future in futures] == expected
    scheduler.stop()


def test_constrained_answers_of_adapters_are_those_without_drafts(tuned: Tuned) -> None:
    encoder = VisionEncoder(tuned.artifacts, precision="float32")
    encoder.load()
    entry = CATALOG[read_manifest(tuned.artifacts).model_id]
    found = asked(
        tuned.case.decoder,
        encoder,
        entry,
        ["open_vocabulary_detection", "phrase_grounding"],
        range(4),
    )
    requests = [
        replace(each.request, adapter=tuned.adapter(index)) for index, each in enumerate(found)
    ]
    drafted, plain = (
        each(tuned.case.decoder, requests, 3) for each in (generate, generate_without_drafts)
    )
    assert len(requests) > 10
    assert [each.token_ids for each in drafted] == [each.token_ids for each in plain]


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_the_product_of_an_adapter_is_added_to_a_base_of_lower_precision(
    tuned: Tuned, precision: Precision
) -> None:
    """Compared with float32 on both sides: the adapter moves the logits in the same direction, by
    the same amount.
    """

    def moved(in_precision: Precision) -> torch.Tensor:
        decoder = adapted_decoder(tuned.artifacts, tuned.tensors, in_precision)
        requests = [tuned.request(index) for index in range(len(tuned.references))]
        base = [replace(request, adapter=None) for request in requests]
        with torch.inference_mode():
            adapted, plain = (
                EagerEngine(decoder, 9).prefill(each, 0).float() for each in (requests, base)
            )
        return adapted - plain

    expected = moved("float32")
    measured = moved(precision)
    assert measured[0].abs().max() == 0  # the base's row
    cosines = torch.cosine_similarity(measured[1:], expected[1:])
    assert cosines.min() > 0.95
