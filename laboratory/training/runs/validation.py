"""Accuracy of a model in training on scenes that it is not trained on, by the decoders and parsers
that serve it.

Greedy, at the model's own image size, without the network between; `python -m
laboratory.evaluation` measures what is served.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, islice
from typing import Any

import numpy as np
import torch

from export.scenes import CANVAS_PX
from laboratory.questions import Question, question_prompts
from laboratory.scoring import Scorecard, score_answer
from laboratory.training.data.examples import Language
from laboratory.training.data.pictures import Picture
from laboratory.training.models.trainee import FamilyParts, Trainee
from runners.decoder.answers import to_written
from runners.decoder.batch import generate_all
from runners.decoder.protocol import Decoder
from runners.decoder.scheduler import WrittenSequence
from runners.decoder.sequences import SequenceRequest
from runners.models.load import DECODERS
from runners.models.weights import DecoderCheckpoint, DecoderWeights
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from tasks.families import FAMILIES
from tasks.generation import GeneratedText
from tasks.parameters import parse_parameters
from tasks.table import TASKS

_SIZE_WH = (CANVAS_PX, CANVAS_PX)
_BATCH_SIZE = 64


def make_decoder(trainee: Trainee, language: Language) -> Decoder:
    """Return the decoder that serves the family, over the weights in training."""
    config = trainee.model.config
    rules = GenerationRules.of(trainee.model.generation_config.to_dict())
    constraints = Constraints(json.loads(language.tokenizer.to_str()), rules.eos_token_ids)
    values = config.to_dict() | {
        "bos_token_id": language.prompt_start[0],
        "pad_token_id": trainee.processor.tokenizer.pad_token_id,
    }
    weights = DecoderWeights(trainee.language_model.state_dict(), "float32", trainee.model.device)
    checkpoint = DecoderCheckpoint(values, weights, rules, language.prompt_tokenizer, constraints)
    return DECODERS[language.entry.family](checkpoint)


@torch.inference_mode()
def validate(parts: FamilyParts, pictures: Sequence[Picture]) -> Scorecard:
    """Score the answers to every question about the pictures."""
    trainee = parts.trainee
    language = parts.language
    side_px = trainee.size.image_px
    asked: list[tuple[Question, list[SequenceRequest]]] = []
    for picture in pictures:
        pixels = torch.from_numpy(np.asarray(picture.render(side_px)).copy())[None]
        features = trainee.image_features(pixels.to(trainee.embeddings.device))[0]
        for question in (each.question for each in picture.asked):
            requests = []
            for prompt in question_prompts(language.entry, question):
                segments = [(each.text, each.is_control) for each in prompt.segments]
                ids = language.prompt_ids(segments)
                requests.append(SequenceRequest(features, ids, trainee.size.max_new_tokens))
            if requests:
                asked.append((question, requests))
    decoder = make_decoder(trainee, language)
    all_requests = list(chain.from_iterable(own for _, own in asked))
    texts = iter(_written(decoder, all_requests))
    scorecard = Scorecard()
    for question, own in asked:
        parameters = parse_parameters(TASKS[question.task], question.parameters)
        given = list(islice(texts, len(own)))
        result = FAMILIES[language.entry.family].parse_answer(
            language.entry,
            question.task,
            parameters,
            given,
            _SIZE_WH,
            "polygon",
            parts.mask_decoder,
        )
        sent = asdict(result, dict_factory=_as_sent)
        scorecard += score_answer(sent, question, _SIZE_WH)
    return scorecard


def _written(decoder: Decoder, requests: list[SequenceRequest]) -> list[GeneratedText]:
    texts = []
    for start in range(0, len(requests), _BATCH_SIZE):
        batch = requests[start : start + _BATCH_SIZE]
        for request, sequence in zip(batch, generate_all(decoder, batch), strict=True):
            written = to_written(decoder, request, WrittenSequence(sequence, 0.0, 0.0, 0.0))
            ends = tuple(written.token_ends)
            logprobs = tuple(written.logprobs)
            texts.append(GeneratedText(written.text, ends, logprobs, written.finish_reason))
    return texts


def _as_sent(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return what the service would send of a result."""
    return {name: value for name, value in items if name != "is_parsed" and value is not None}
