"""Both families' decoders against transformers' `generate`, from the same image features, alone and in batches."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from export.decoder_weights import write_decoder_weights
from export.reference import Reference
from export.scenes import render_scene, sample_scene
from runners.artifacts import DECODER_FILE, GENERATION_CONFIG_FILE, Family, read_manifest
from runners.decoders import load_decoder
from runners.generation import Decoder, LiveBatch, generate_all
from runners.sequences import GeneratedSequence, LiveSequence, NonFiniteLogits, SequenceRequest
from tests.support.export_cli import EMBEDDED, MODELS, ModelStore
from tests.support.small_paligemma2 import write_small_paligemma2

PROMPTS: dict[Family, tuple[str, ...]] = {
    "florence2": (
        "What does the image describe?",
        "Locate the objects with category name in the image.",
        "Locate a red circle, a blue square and a large green star which stands on the left with mask",
        "What is the text in the image, with regions?",
        "Describe in detail what is shown in the image.",
    ),
    "paligemma": (
        "caption en",
        "detect circle",
        "segment square",
        "answer en how many shapes are there? and what is the colour of the one on the left?",
        "ocr",
    ),
}
SIDE_PX, NUM_SCENES, MAX_NEW_TOKENS = 192, 6, 40
NEAR_TIE_LOGITS = 1e-3


@dataclass(frozen=True, slots=True)
class Case:
    """A decoder of ours, the same checkpoint in transformers, and what both are asked."""

    decoder: Decoder  # type: ignore[type-arg]
    reference: Reference
    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...]
    features: Tensor  # (images, N, C)

    def request(self, index: int, max_new_tokens: int = MAX_NEW_TOKENS) -> SequenceRequest:
        prompt_ids = self.decoder.prompt_ids([(self.prompts[index % len(self.prompts)], False)])
        return SequenceRequest(self.features[index % NUM_SCENES], prompt_ids, max_new_tokens)

    def requests(self) -> list[SequenceRequest]:
        return [self.request(index, 8 + index) for index in range(NUM_SCENES * len(self.prompts))]


@pytest.fixture(scope="module", params=[*EMBEDDED, "small-paligemma2", "florence-2-mini without repeats"])
def case(request: pytest.FixtureRequest, exported: ModelStore, tmp_path_factory: pytest.TempPathFactory) -> Case:
    match request.param:
        case "small-paligemma2":
            folder = tmp_path_factory.mktemp("paligemma2")
            write_small_paligemma2(folder)
            reference = Reference.load(folder, "float32")
            write_decoder_weights(reference.model, folder / DECODER_FILE)
            return make_case(folder, "paligemma", reference)
        case "florence-2-mini without repeats":
            folder = shutil.copytree(exported.newest("florence-2-mini"), tmp_path_factory.mktemp("florence2") / "copy")
            rules = folder / GENERATION_CONFIG_FILE
            rules.write_text(rules.read_text().replace("{", '{"no_repeat_ngram_size": 3,', 1))
            reference = Reference.load(MODELS / "florence-2-mini", "float32")
            reference.model.generation_config.no_repeat_ngram_size = 3  # as the released Florence-2 has it
            return make_case(folder, "florence2", reference)
        case model_id:
            folder = exported.newest(model_id)
            return make_case(folder, read_manifest(folder).family, Reference.load(MODELS / model_id, "float32"))


def make_case(folder: Path, family: Family, reference: Reference) -> Case:
    images = tuple(render_scene(sample_scene(seed), SIDE_PX) for seed in range(NUM_SCENES))
    decoder = load_decoder(folder, family, "float32", "cpu")
    return Case(decoder, reference, PROMPTS[family], images, reference.image_features(images))


def test_a_mixed_batch_gives_the_tokens_of_generate_alone(case: Case) -> None:
    requests = case.requests()
    num_near_ties = 0
    for index, written in enumerate(generate_all(case.decoder, requests)):
        prompt, image = case.prompts[index % len(case.prompts)], case.images[index % NUM_SCENES]
        features = case.features[index % NUM_SCENES]
        expected = case.reference.generate(prompt, image, features, requests[index].max_new_tokens)
        if written.token_ids != expected.token_ids:
            step = next(i for i, (a, b) in enumerate(zip(written.token_ids, expected.token_ids)) if a != b)  # noqa: B905
            best, second = expected.logits[step].topk(2).values.tolist()
            assert best - second <= NEAR_TIE_LOGITS, (prompt, written.token_ids, expected.token_ids)
            num_near_ties += 1
    assert num_near_ties <= 0.02 * len(requests)


def test_n_together_give_the_tokens_of_n_alone(case: Case) -> None:
    requests = case.requests()
    alone = [generate_all(case.decoder, [request])[0] for request in requests]
    together = generate_all(case.decoder, requests)
    assert [written.token_ids for written in together] == [written.token_ids for written in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_log_probabilities_are_those_of_the_reference(case: Case) -> None:
    written = generate_all(case.decoder, [case.request(1)])[0]
    expected = case.reference.generate(case.prompts[1], case.images[1], case.features[1], MAX_NEW_TOKENS)
    scores = case.reference.model.compute_transition_scores(
        torch.tensor([expected.token_ids]), tuple(expected.logits[:, None]), normalize_logits=True
    )
    assert written.token_ids == expected.token_ids
    assert written.logprobs == pytest.approx(scores[0].tolist(), abs=1e-4)


def test_sampling_with_a_seed_is_the_same_alone_and_in_company(case: Case) -> None:
    sampled = replace(case.request(0), temperature=1.0, seed=11)
    alone = generate_all(case.decoder, [sampled])[0]
    together = generate_all(case.decoder, [*case.requests()[:5], sampled])[-1]
    assert together.token_ids == alone.token_ids
    assert len(alone.token_ids) > 1


def test_what_ends_early_leaves_the_others_as_they_are(case: Case) -> None:
    short, long = replace(case.request(1), max_new_tokens=1), case.request(1)
    cut, whole = generate_all(case.decoder, [short, long])
    assert isinstance(whole, GeneratedSequence)
    assert whole.token_ids == generate_all(case.decoder, [long])[0].token_ids
    assert len(cut.token_ids) == 1


def test_a_poisoned_sequence_spoils_nobody_who_is_or_comes_beside_it(case: Case) -> None:
    poisoned = replace(case.request(0), image_features=torch.full_like(case.features[0], torch.nan))
    batch = LiveBatch(case.decoder, 2)
    beside, after = (LiveSequence(case.request(index), case.decoder.rules) for index in (1, 2))
    batch.admit([LiveSequence(poisoned, case.decoder.rules), beside])
    while not (left := batch.leave()):  # a forced first token is certain whatever the logits
        batch.step()
    assert isinstance(left[0].error, NonFiniteLogits)
    batch.admit([after])
    while batch.live:
        batch.step()
        batch.leave()
    alone = generate_all(case.decoder, [case.request(1)]) + generate_all(case.decoder, [case.request(2)])
    assert [beside.result().token_ids, after.result().token_ids] == [each.token_ids for each in alone]


def test_sequences_that_come_and_go_give_the_tokens_of_each_alone(case: Case) -> None:
    requests = case.requests()
    alone = [generate_all(case.decoder, [request])[0].token_ids for request in requests]
    waiting = [LiveSequence(request, case.decoder.rules) for request in requests]
    sequences, batch = list(waiting), LiveBatch(case.decoder, 5)
    while waiting or batch.live:
        batch.leave()
        if waiting and batch.num_free:
            batch.admit([waiting.pop(0) for _ in range(min(len(waiting), batch.num_free, 2))])
            batch.leave()
        if batch.live:
            batch.step()
    assert [sequence.result().token_ids for sequence in sequences] == alone
