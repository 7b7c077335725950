"""Load the decoder of a family. The only module that imports both families."""

from dataclasses import replace
from pathlib import Path

import torch

from runners.decoder.protocol import Decoder
from runners.models.adapters import Adapters
from runners.models.bart import Bart
from runners.models.florence2 import Florence2Decoder
from runners.models.gemma import Gemma
from runners.models.paligemma import PaliGemmaDecoder
from runners.models.weights import DecoderWeights
from runners.tokens.constraints import Constraints
from runners.tokens.rules import GenerationRules
from runners.tokens.tokenizer import PromptTokenizer
from wire.artifacts.manifest import DECODER_FILE, TOKENIZER_FILE, Family, Precision, read_config


def load_decoder(
    folder: Path,
    family: Family,
    precision: Precision,
    device: str,
    max_positions: int = 0,
    weights_of: type[DecoderWeights] = DecoderWeights,
    adapters: Adapters | None = None,
    num_image_tokens: int = 0,
) -> Decoder:
    """Load the decoder of an artifact folder onto `device` ("cpu", "cuda").

    `max_positions` limits the positions of a sequence; 0: the model's limit. `weights_of` reads the
    weights; the export has one that keeps few layers in memory. `adapters` can be added to its
    layers. `num_image_tokens` of one image size the captured passes of a GPU; 0: the family's own.
    """
    if device != "cpu":
        # cuDNN's attention plans for every new batch size and length, while all sequences wait
        torch.backends.cuda.enable_cudnn_sdp(False)
    config = read_config(folder)
    text = config["text_config"]
    weights = weights_of.open(folder / DECODER_FILE, precision, device, adapters)
    rules = GenerationRules.load(folder)
    tokenizer = PromptTokenizer.load(folder / TOKENIZER_FILE)
    constraints = Constraints.load(folder / TOKENIZER_FILE, rules.eos_token_ids)
    decoder: Decoder
    if family == "florence2":
        decoder = Florence2Decoder(
            Bart(text, weights), tokenizer, constraints, rules, config, adapters
        )
    else:
        decoder = PaliGemmaDecoder(
            Gemma(text, weights), tokenizer, constraints, rules, config, adapters
        )
    if num_image_tokens:
        decoder.shape = replace(decoder.shape, num_image_tokens=num_image_tokens)
    if max_positions:
        limit = min(max_positions, decoder.shape.num_positions)
        decoder.shape = replace(decoder.shape, num_positions=limit)
    return decoder
