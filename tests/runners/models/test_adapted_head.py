"""Adapters of the output head, which is tied to the embeddings: logits and tokens of PEFT's model.

The reference is not merged: PEFT's merge changes the embeddings too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.checks.reference import Reference
from runners.adapters.low_rank import Adapters
from runners.adapters.peft import read_adapter
from runners.decoder.batch import generate_all
from runners.decoder.engines import EagerEngine
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.decoder_cases import NUM_SCENES, Case, make_case
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.lora import LAYERS, unmerged, write_adapter
from tests.support.reference_answers import reference_answer
from wire.artifacts.adapter_folder import WEIGHTS_FILE, AdapterError, AdapterLimits, NoRoomError
from wire.artifacts.manifest import DECODER_FILE, Precision, read_manifest

# Logits reach 20; sums in another order differ by less.
MAX_LOGIT_ERROR = 1e-4
# Errors of int8 and bfloat16; the product reads a last state that has the base's.
MAX_BASE_ERROR = 2.0
MAX_PRODUCT_ERROR = 0.1
MAX_NEW_TOKENS = 16
NUM_REQUESTS = 6
TARGETS: Mapping[str, list[str] | str] = {"head": ["lm_head"], "all": f"{LAYERS}|lm_head"}


@dataclass(frozen=True)
class Headed:
    """A base with two adapters of its head, and PEFT's model of each."""

    case: Case
    references: Mapping[str | None, Reference]
    folders: Mapping[str, Path]
    artifacts: Path

    def request(self, index: int) -> SequenceRequest:
        return replace(self.case.request(index, MAX_NEW_TOKENS), adapter=self.adapter(index))

    def adapter(self, index: int) -> str | None:
        return list(self.references)[index % len(self.references)]

    def first_logits(self, index: int) -> Tensor:
        """Return PEFT's logits (V,) of the first token, which no rule of generation forces."""
        reference = self.references[self.adapter(index)]
        rules = reference.model.generation_config
        forced = rules.forced_bos_token_id
        rules.forced_bos_token_id = None
        prompt = self.case.prompts[index % len(self.case.prompts)]
        place = index % NUM_SCENES
        answer = reference_answer(
            reference, prompt, self.case.images[place], self.case.features[place], 2
        )
        rules.forced_bos_token_id = forced
        return answer.logits[0]

    def read(self, adapter: str) -> dict[str, Tensor]:
        return read_adapter(self.folders[adapter], self.artifacts / DECODER_FILE, AdapterLimits())


@pytest.fixture(scope="module", params=EMBEDDED)
def headed(
    request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> Headed:
    folder = tmp_path_factory.mktemp("headed")
    artifacts = exported.newest(request.param)
    case = make_case(request.param, exported, folder)
    adapters = Adapters()
    family = read_manifest(artifacts).family
    decoder = load_decoder(artifacts, family, "float32", "cpu", adapters=adapters)
    references: dict[str | None, Reference] = {None: case.reference}
    folders = {}
    for seed, (name, targets) in enumerate(TARGETS.items()):
        reference = Reference.load(MODELS / request.param)
        folders[name] = write_adapter(
            reference.model, folder / name, seed, r=4 + seed, target_modules=targets
        )
        model = unmerged(reference.model, folders[name])
        references[name] = Reference(model, reference.processor)
    found = Headed(replace(case, decoder=decoder), references, folders, artifacts)
    for name in TARGETS:
        adapters.add(name, found.read(name))
    return found


def test_adapters_of_the_head_mixed_in_one_batch_give_the_tokens_of_peft(headed: Headed) -> None:
    requests = [headed.request(index) for index in range(NUM_REQUESTS)]
    written = generate_all(headed.case.decoder, requests)
    base = generate_all(headed.case.decoder, [replace(each, adapter=None) for each in requests])
    for index, (request, sequence) in enumerate(zip(requests, written, strict=True)):
        case = replace(headed.case, reference=headed.references[headed.adapter(index)])
        assert case.equals_reference(index, request, sequence.token_ids, 0.0)
    changed = [one.token_ids != other.token_ids for one, other in zip(written, base, strict=True)]
    assert any(changed)
    assert not any(changed[:: len(headed.references)])  # the base's


def test_the_logits_are_those_of_peft_and_the_base_has_its_own(headed: Headed) -> None:
    requests = [headed.request(index) for index in range(NUM_REQUESTS)]
    with torch.inference_mode():
        logits = EagerEngine(headed.case.decoder, NUM_REQUESTS).prefill(requests, 0)
    for index, row in enumerate(logits):
        expected = headed.first_logits(index)
        assert (row - expected).abs().max() < MAX_LOGIT_ERROR


@pytest.mark.parametrize("precision", ["int8", "bfloat16"])
def test_beside_a_smaller_base_the_heads_product_stays_in_float32(
    headed: Headed, precision: Precision
) -> None:
    """The base's own error remains, and the product adds none: its share is that of float32."""
    family = read_manifest(headed.artifacts).family
    adapters = Adapters()
    decoder = load_decoder(headed.artifacts, family, precision, "cpu", adapters=adapters)
    adapters.add("head", headed.read("head"))
    request = headed.case.request(0, MAX_NEW_TOKENS)
    with torch.inference_mode():
        own, base = (
            EagerEngine(decoder, 1).prefill([replace(request, adapter=adapter)], 0)[0].float()
            for adapter in ("head", None)
        )
        exact, exact_base = (
            EagerEngine(headed.case.decoder, 1).prefill([replace(request, adapter=adapter)], 0)[0]
            for adapter in ("head", None)
        )
    base_error = (base - exact_base).abs().max()
    assert 0 < base_error < MAX_BASE_ERROR
    assert (own - exact).abs().max() < 2 * base_error
    product = exact - exact_base
    assert ((own - base) - product).norm() < MAX_PRODUCT_ERROR * product.norm()


def test_rows_that_the_tuned_model_lacks_are_means(headed: Headed, tmp_path: Path) -> None:
    """Microsoft's embeddings have 51,289 rows, those of an export 51,328."""
    tensors = load_file(headed.folders["head"] / WEIGHTS_FILE)
    name = next(each for each in tensors if ".lora_B." in each)
    cut = tensors[name][:-39].clone()
    copy = tmp_path / "cut"
    copy.mkdir()
    for file in headed.folders["head"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    copies = {each: value for each, value in tensors.items() if "base_layer" not in each}
    save_file(copies | {name: cut}, copy / WEIGHTS_FILE)
    up = read_adapter(copy, headed.artifacts / DECODER_FILE, AdapterLimits())["lm_head.up"]
    whole = headed.read("head")["lm_head.up"]
    assert torch.equal(up[:-39], whole[:-39])
    assert torch.equal(up[-39:], whole[:-39].mean(0).expand(39, -1))


def test_a_head_that_differs_from_the_base_is_refused(headed: Headed, tmp_path: Path) -> None:
    tensors = load_file(headed.folders["head"] / WEIGHTS_FILE)
    name = next(each for each in tensors if ".base_layer." in each)
    tensors[name][0, 0] += 1
    copy = tmp_path / "other"
    copy.mkdir()
    for file in headed.folders["head"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    save_file(tensors, copy / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=r"changes lm_head\.base_layer\.weight, which is not"):
        read_adapter(copy, headed.artifacts / DECODER_FILE, AdapterLimits())


def test_the_memory_of_a_head_is_counted(headed: Headed) -> None:
    adapters = Adapters()
    family = read_manifest(headed.artifacts).family
    load_decoder(headed.artifacts, family, "float32", "cpu", adapters=adapters)
    tensors = headed.read("head")
    num_bytes = sum(each.nbytes for each in tensors.values())
    with pytest.raises(NoRoomError, match="DIPTYCH_ADAPTERS_MB"):
        adapters.add("head", tensors, num_bytes - 1)
    adapters.add("head", tensors, num_bytes)
