"""Adapters made by peft, mixed in one batch: the tokens of transformers' `generate` with the merged
model, or with the adapter beside a tied head, whose merge would change the embeddings too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checks.reference import Reference
from runners.adapters.low_rank import AdaptedLinear, Adapters, LowRank
from runners.adapters.peft import read_adapter
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import Scheduler
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from runners.options import SchedulerLimits
from tests.support.decoder_cases import MAX_NEAR_TIES, Case, make_case
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.lora import LAYERS, merged, unmerged, write_adapter
from wire.artifacts.adapter_folder import AdapterLimits
from wire.artifacts.manifest import DECODER_FILE, Precision, read_manifest

NUM_BEAMS = 3
MAX_NEW_TOKENS = 24
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"r": 16, "use_rslora": True},
    {"r": 2, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.self_attn.v_proj": 32}},
    {"target_modules": r".*language_model.*\.(q_proj|v_proj)"},  # PEFT's default for most models
    {"target_modules": ["lm_head"]},
    {"r": 5, "target_modules": f"{LAYERS}|lm_head"},
)
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Tuned:
    """A base with its adapters, loaded into one decoder, and transformers' model of each."""

    case: Case
    artifacts: Path
    tensors: Mapping[str, Mapping[str, torch.Tensor]]  # key: adapter
    references: Mapping[str | None, Reference]

    def adapter(self, index: int) -> str | None:
        return list(self.references)[index % len(self.references)]

    def request(self, index: int, num_beams: int = 1) -> SequenceRequest:
        """Return the request of an index, for the base or one of its adapters in turn."""
        request = self.case.request(index, MAX_NEW_TOKENS, num_beams)
        return replace(request, adapter=self.adapter(index))

    def requests(self, num: int) -> list[SequenceRequest]:
        return [self.request(index) for index in range(num)]


@pytest.fixture(scope="module", params=EMBEDDED)
def tuned(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Tuned:
    folder = tmp_path_factory.mktemp("adapters")
    artifacts = exported.newest(request.param)
    case = make_case(request.param, exported, folder)
    references: dict[str | None, Reference] = {None: case.reference}
    tensors = {}
    for seed, options in enumerate(OPTIONS):
        reference = Reference.load(MODELS / request.param)
        path = write_adapter(reference.model, folder / str(seed), seed, **options)
        with_adapter = unmerged if "lm_head" in str(options) else merged
        key = f"tuned-{seed}"
        tensors[key] = read_adapter(path, artifacts / DECODER_FILE, AdapterLimits())
        references[key] = Reference(with_adapter(reference.model, path), reference.processor)
    case = replace(case, decoder=adapted_decoder(artifacts, tensors))
    return Tuned(case, artifacts, tensors, references)


def adapted_decoder(
    artifacts: Path,
    tensors: Mapping[str, Mapping[str, torch.Tensor]],
    precision: Precision = "float32",
    adapters: Adapters | None = None,
) -> Decoder:
    adapters = adapters or Adapters()
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, precision, "cpu", adapters=adapters)
    for key, adapter_tensors in tensors.items():
        adapters.add(key, adapter_tensors)
    return decoder


class RecordedAdapters(Adapters):
    """Adapters that record the input and output of each layer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[AdaptedLinear, torch.Tensor, torch.Tensor]] = []

    def over(
        self,
        base: Callable[[torch.Tensor], torch.Tensor],
        layers: Sequence[str],
        sizes: Sequence[int],
        width: int,
    ) -> Any:
        layer = super().over(base, layers, sizes, width)

        def recorded(states: torch.Tensor) -> torch.Tensor:
            output = layer(states)
            self.calls.append((layer, states.clone(), output.clone()))
            return output

        return recorded


def token_ids_of(decoder: Decoder, requests: list[SequenceRequest]) -> list[tuple[int, ...]]:
    return [sequence.token_ids for sequence in generate_all(decoder, requests)]


@pytest.mark.parametrize("num_prompts", [7, pytest.param(105, marks=pytest.mark.long)])
@pytest.mark.parametrize("num_beams", [1, NUM_BEAMS])
def test_mixed_adapters_give_the_tokens_of_peft(
    tuned: Tuned, num_beams: int, num_prompts: int
) -> None:
    requests = [tuned.request(index, num_beams) for index in range(num_prompts)]
    generated = generate_all(tuned.case.decoder, requests)
    num_near_ties = 0
    for index, (request, sequence) in enumerate(zip(requests, generated, strict=True)):
        case = replace(tuned.case, reference=tuned.references[tuned.adapter(index)])
        score = sum(sequence.logprobs) / len(sequence.logprobs)
        num_near_ties += not case.equals_reference(index, request, sequence.token_ids, score)
    assert num_near_ties <= MAX_NEAR_TIES * num_prompts


def test_adapters_change_the_answers_of_the_base(tuned: Tuned) -> None:
    """Otherwise the comparison above would compare the base with itself."""
    requests = tuned.requests(14)
    adapted = token_ids_of(tuned.case.decoder, requests)
    base = token_ids_of(tuned.case.decoder, [replace(one, adapter=None) for one in requests])
    are_equal = [one == other for one, other in zip(adapted, base, strict=True)]
    assert are_equal[0]
    assert sum(are_equal) <= 8  # two requests are of the base


def test_adapters_that_come_and_go_change_no_other_answer(tuned: Tuned) -> None:
    first, *others = tuned.tensors
    decoder = adapted_decoder(tuned.artifacts, {first: tuned.tensors[first]})
    adapters: Adapters = decoder.adapters
    scheduler = Scheduler(decoder, "hot adapters", SchedulerLimits(4, 100, 800))
    scheduler.start()
    for names in ([None, first], [others[0]]):
        requests: list[SequenceRequest] = []
        for index, request in enumerate(tuned.requests(8)):
            requests.append(replace(request, adapter=names[index % len(names)]))
        expected = [token_ids_of(tuned.case.decoder, [request])[0] for request in requests]
        futures = [scheduler.submit([request])[0] for request in requests]
        for other in others[1:] * 2:
            adapters.add(other, tuned.tensors[other])
            adapters.remove(other)
        assert [future.result(TIMEOUT_S).sequence.token_ids for future in futures] == expected
        adapters.add(others[0], tuned.tensors[others[0]])
    scheduler.stop()


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_products_stay_in_float32_over_a_smaller_base(tuned: Tuned, precision: Precision) -> None:
    """The output of a layer is rounded to the base's dtype once, after the adapter is added."""
    adapters = RecordedAdapters()
    decoder = adapted_decoder(tuned.artifacts, tuned.tensors, precision, adapters)
    with torch.inference_mode():
        EagerEngine(decoder, 9).prefill(tuned.requests(len(tuned.references)), 0)
    products = set()
    for layer, states, output in adapters.calls:
        expected = layer.base(states).double()
        max_error = torch.zeros_like(expected)
        for adapter, rows in adapters.rows.items():
            product = LowRank.joined(tuned.tensors[adapter], layer.layers, layer.sizes)
            if product is not None:
                down = product.down.double()
                up = product.up.double()
                inputs = states[rows].double()
                expected[rows] += inputs @ down.T @ up
                num_sums = layer.width + len(down)
                max_error[rows] = inputs.abs() @ down.abs().T @ up.abs()
                max_error[rows] *= num_sums * torch.finfo(torch.float32).eps
                products.add((adapter, *layer.layers))
        _, exponents = torch.frexp(expected)
        last_place = torch.finfo(output.dtype).eps * 2.0 ** (exponents - 1)
        assert ((output.double() - expected).abs() <= last_place / 2 + max_error).all()
    assert {adapter for adapter, *_ in products} == set(tuned.tensors)
