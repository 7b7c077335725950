"""Our decoders, the same checkpoints in transformers, and requests for both."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

from export.checkpoints.tensors import CheckpointTensors, write_decoder_weights
from export.checks.reference import Reference
from export.scenes import render_scene, sample_scene
from runners.decoder.protocol import Decoder
from runners.decoder.sequences import SequenceRequest
from runners.models.load import load_decoder
from tests.support.export_cli import MODELS, ModelStore
from tests.support.microsoft_form import update_json
from wire.artifacts.manifest import DECODER_FILE, GENERATION_CONFIG_FILE, Family, read_manifest

_Model: Any = AutoModelForImageTextToText  # transformers' factories have no types
_Config: Any = AutoConfig
_GenerationConfig: Any = GenerationConfig

PROMPTS: dict[Family, tuple[str, ...]] = {
    "florence2": (
        "What does the image describe?",
        "Locate the objects with category name in the image.",
        (
            "Locate a red circle, a blue square and a large green star which stands on the left"
            " with mask"
        ),
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
SIDE_PX = 192
NUM_SCENES = 6
MAX_NEW_TOKENS = 40
NEAR_TIE_LOGITS = 1e-3  # well above the rounding error of sums in a different order
MAX_NEAR_TIES = 0.02  # share of the answers

# The released Florence-2 checkpoints have these: no repeated trigrams, early stopping.
RELEASED_RULES = {"no_repeat_ngram_size": 3, "early_stopping": True}
# soft caps, and a sliding window shorter than the 144 image tokens and than an answer
GEMMA2 = {
    "model_type": "gemma2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
    "sliding_window": 12,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
WEIGHT_STD = 0.1  # added to every weight: keeps logits apart, which avoids near ties
# factor of the end token's embedding: Gemma then ends at varying positions, the others at their
# limit
END_BIAS = 2


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """The output of transformers' `generate`, end token included."""

    token_ids: tuple[int, ...]
    logits: Tensor  # (T, V) float32, after the checkpoint's generation rules; empty with beams
    score: float | None = None  # best beam's, as `generate` ranks them; None without beams


@torch.inference_mode()
def reference_answer(
    reference: Reference,
    text: str,
    image: Image.Image,
    image_features: Tensor,
    max_new_tokens: int,
    num_beams: int = 1,
) -> ReferenceAnswer:
    """Answer a prompt; `image_features` (N, C) are `image`'s."""
    inputs = reference.inputs([text], [image])
    output = reference.model.generate(
        **reference.arguments(inputs, image_features[None], max_new_tokens),
        num_beams=num_beams,
        output_scores=True,
        return_dict_in_generate=True,
    )
    token_ids = tuple(output.sequences[0, reference.num_prompt_tokens(inputs) :].tolist())
    if num_beams > 1:
        return ReferenceAnswer(token_ids, torch.empty(0), float(output.sequences_scores[0]))
    return ReferenceAnswer(token_ids, torch.cat(output.scores).float())


@dataclass(frozen=True, slots=True)
class Case:
    """Our decoder, the same checkpoint in transformers, and requests for both."""

    decoder: Decoder
    reference: Reference
    prompts: tuple[str, ...]
    images: tuple[Image.Image, ...]
    features: Tensor  # (images, N, C)

    def request(
        self, index: int, max_new_tokens: int = MAX_NEW_TOKENS, num_beams: int = 1
    ) -> SequenceRequest:
        prompt_ids = self.decoder.text.prompt_ids([(self._prompt(index), False)])
        features = self.features[index % NUM_SCENES]
        return SequenceRequest(features, prompt_ids, max_new_tokens, num_beams=num_beams)

    def requests(self) -> list[SequenceRequest]:
        """Return four requests of each prompt, of different lengths."""
        return [self.request(index, 8 + index * 3 // 2) for index in range(4 * len(self.prompts))]

    def equals_reference(
        self, index: int, request: SequenceRequest, written: tuple[int, ...], score: float
    ) -> bool:
        """Return True for the reference's tokens, False at a near tie; fail for any others."""
        place = index % NUM_SCENES
        features = self.features[place]
        limit = request.max_new_tokens
        expected = reference_answer(
            self.reference,
            self._prompt(index),
            self.images[place],
            features,
            limit,
            request.num_beams,
        )
        if written == expected.token_ids:
            return True
        details = (self._prompt(index), request.num_beams, written, expected.token_ids)
        if expected.score is not None:
            assert abs(score - expected.score) <= NEAR_TIE_LOGITS, (*details, score, expected.score)
        else:
            step = next(i for i, (a, b) in enumerate(zip(written, expected.token_ids)) if a != b)  # noqa: B905
            best, second = expected.logits[step].topk(2).values.tolist()
            assert best - second <= NEAR_TIE_LOGITS, details
        return False

    def _prompt(self, index: int) -> str:
        return self.prompts[index % len(self.prompts)]


def make_case(name: str, exported: ModelStore, folder: Path) -> Case:
    checkpoint, _, rules = name.partition(" released ")
    if name.startswith("random "):
        family = write_random_checkpoint(name.removeprefix("random "), folder)
        reference = Reference.load(folder)
        write_decoder_weights(CheckpointTensors.open(folder), folder / DECODER_FILE)
    else:
        artifacts = exported.newest(checkpoint)
        folder = Path(shutil.copytree(artifacts, folder / "copy")) if rules else artifacts
        reference = Reference.load(MODELS / checkpoint)
        family = read_manifest(folder).family
    if rules:
        update_json(folder / GENERATION_CONFIG_FILE, **RELEASED_RULES)
        reference.model.generation_config.update(**RELEASED_RULES)
    images = tuple(render_scene(sample_scene(seed), SIDE_PX) for seed in range(NUM_SCENES))
    decoder = load_decoder(folder, family, "float32", "cpu")
    return Case(decoder, reference, PROMPTS[family], images, reference.image_features(images))


def write_random_checkpoint(kind: str, folder: Path) -> Family:
    """Write a small checkpoint of random weights, and the vocabulary of the embedded one."""
    family: Family = "florence2" if kind == "florence2" else "paligemma"
    source = MODELS / ("florence-2-mini" if kind == "florence2" else "paligemma-mini")
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copyfile(source / name, folder / name)
    config: dict[str, Any] = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if kind == "paligemma2":
        config["text_config"] = GEMMA2 | {"vocab_size": config["text_config"]["vocab_size"]}
    torch.manual_seed(0)
    model = _Model.from_config(_Config.for_model(**config))
    model.generation_config = _GenerationConfig.from_pretrained(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * WEIGHT_STD)
        model.get_input_embeddings().weight[model.generation_config.eos_token_id] *= END_BIAS
    model.save_pretrained(folder)
    return family
